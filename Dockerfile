# Two images: `server` takes orders (no torch, small), `full` makes videos, too; `full` is what a plain build gives.
#   docker build -t ltx2 .
#   docker build -t ltx2-server --target server .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 LTX2_DATA=/data LTX2_CACHE=/models
# glibc keeps freed memory in an arena for each of many threads: with two, the server grows less under load.
ENV MALLOC_ARENA_MAX=2
RUN groupadd --gid 10001 ltx2 \
    && useradd --uid 10001 --gid ltx2 --create-home ltx2 \
    && install --directory --owner=ltx2 --group=ltx2 /data /models
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
EXPOSE 8000
VOLUME ["/data", "/models"]
ENTRYPOINT ["ltx2"]

FROM base AS server
RUN pip install --constraint constraints.txt '.[serve,postgresql]'
USER 10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["serve", "--host", "0.0.0.0", "--no-workers"]

# torch brings the CUDA libraries; the driver comes from the host (NVIDIA Container Toolkit).
FROM base AS full
RUN pip install --constraint constraints.txt '.[engine,serve,postgresql]'
USER 10001
CMD ["serve", "--host", "0.0.0.0"]
