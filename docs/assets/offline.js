// Search in pages that were opened from the disk. A browser starts no worker there, so the theme's search worker runs in a
// hidden frame of the page; its index comes as a script, which scripts/build_docs.py writes. Over HTTP nothing is changed.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      this.address = new URL(address, location.href)
    }

    // Nothing is sent before somebody opens the search: until then a page is as light as without it.
    async postMessage(data) {
      this.frame ??= this.open()
      const inside = await this.frame
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }

    open() {
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = `<script src="${this.address}"></script>`
      document.body.append(frame)
      return new Promise((resolve) => {
        frame.onload = () => {
          frame.contentWindow.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
          resolve(frame.contentWindow)
        }
      })
    }
  }
}
