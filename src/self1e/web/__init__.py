"""The web page: drop a picture, say what to find, see it, talk about it, take it home.

==============  ==============================================================================================
`page`          the door: ``build`` the page, ``mount`` it in a FastAPI application, ``serve`` it alone
`layout`        what stands where, and what happens on a click; the only file that knows gradio
`workspace`     what is kept for each browser session, within bounds
`finding`       queries to masks; threshold, layers and opacity without asking the model again
`mapping`       classes to a map
`talking`       a conversation's events to messages
`seeing`        the mask after each stage, and the attention of [SEG]
`downloads`     results as files
`examples`      pictures to begin with
`words`         what the page says, as HTML
==============  ==============================================================================================

Everything but `layout` works on results alone, without gradio and without a browser.
"""
