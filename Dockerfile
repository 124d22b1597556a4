# Two images: `serve` (the default; no torch) and `train` (everything a training run needs).
#
# BASE is any Linux image with Python 3.11 to 3.13 and its venv module as `python3`. Nothing is installed with the base's
# own package manager, so that the official image and a plain Debian work alike. How to build: docs/containers.md.
ARG BASE=python:3.11-slim-bookworm

# pip and the build tools live in /opt/tools of the build stages; what an image keeps is /opt/venv, without pip.
# The build host's pip settings arrive as optional secrets and leave no trace in a layer.
FROM ${BASE} AS tools
ENV PIP_CONFIG_FILE=/run/secrets/pip_conf \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt ./
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_cert \
    python3 -m venv /opt/tools \
    && python3 -m venv --without-pip /opt/venv \
    && /opt/tools/bin/pip install --quiet --require-hashes -r build.txt

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY service service
COPY training training
RUN /opt/tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist .

FROM tools AS build-serve
COPY requirements/serve.txt ./
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_cert \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes -r serve.txt
COPY --from=wheel /dist /dist
RUN /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --no-index /dist/*.whl

FROM tools AS build-train
COPY requirements/train.txt ./
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=pip_cert \
    /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes -r train.txt
COPY --from=wheel /dist /dist
RUN /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --no-index /dist/*.whl

# The modules were compiled when they were installed, and no image writes beside them: both run on a read-only root.
# onnxruntime reports its use to its maker unless this is set before it is loaded.
FROM ${BASE} AS runtime
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 equipoise \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin equipoise

FROM runtime AS train
COPY --from=build-train /opt/venv /opt/venv
RUN install -d -o equipoise -g equipoise /data
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["equipoise"]
CMD ["--help"]

FROM runtime AS serve
COPY --from=build-serve /opt/venv /opt/venv
COPY --chmod=755 scripts/serve-bundles.sh /opt/serve-bundles.sh
# The one writable place: the database and the artifacts.
RUN install -d -o equipoise -g equipoise /var/lib/equipoise && install -d /bundles
# Inside a container the loopback address reaches nobody, so the service listens on all of the container's own. Until it
# has keys, what keeps strangers out is where the port is published: docker-compose.yml does so on the host's 127.0.0.1.
ENV EQUIPOISE_STATE_DIR=/var/lib/equipoise \
    EQUIPOISE_HOST=0.0.0.0 \
    EQUIPOISE_PORT=8000 \
    EQUIPOISE_ALLOW_ANONYMOUS=true
VOLUME /var/lib/equipoise
USER 10001:10001
WORKDIR /var/lib/equipoise
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"EQUIPOISE_PORT\"]}/v2/health/ready', timeout=4)"]
CMD ["/opt/serve-bundles.sh"]
