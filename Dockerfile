# The HTTP service. CPU: `docker build -t self1e .`; CUDA: `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128`.
# API keys come from the environment when it runs (SELF1E_API_KEYS); none is in the image.
FROM python:3.13.5-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# By itself, for it is most of the image and changes least.
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.6"

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install ".[serve]" && useradd --system --create-home --uid 10001 self1e

USER self1e
WORKDIR /home/self1e
# Models from the hub stay here: mount a volume to keep them.
ENV HF_HOME=/home/self1e/huggingface
RUN mkdir -p "$HF_HOME"

EXPOSE 8000
STOPSIGNAL SIGTERM
# A large model takes minutes to load; /ready needs no key.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]

ENTRYPOINT ["self1e"]
# Every address of the container: it starts only with SELF1E_API_KEYS.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--model", "nano"]
