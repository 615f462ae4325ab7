# syntax=docker/dockerfile:1
# The images. Target `trainer` is what the pods of a run execute, `controlplane` the service that makes them:
#   docker build --target trainer -t REGISTRY/teragpt/trainer:TAG .
#   docker build --target controlplane -t REGISTRY/teragpt/controlplane:TAG .
# Its layers, from the bottom: Debian, the libraries (some GB, moved once), the code (small, last).
# Behind a mirror of PyPI: --secret id=pip,src=pip.conf --secret id=uv,src=uv.toml; neither ends in a layer.

ARG BASE=debian:12-slim

# Debian with Python; a C++ compiler and Python's headers for what torch.compile and Triton build at run time; the
# libraries of InfiniBand and RoCE that NCCL loads. A base that has the packages already needs no network here.
FROM ${BASE} AS base
ARG PACKAGES="ca-certificates g++ ibverbs-providers libibverbs1 python3-dev python3-venv"
RUN dpkg -s ${PACKAGES} >/dev/null 2>&1 || { \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; }

# The trainer's libraries with everything that they need, at the versions of constraints.txt: torch with its CUDA, and
# all. Only a change in these lists makes their layers anew, not every change of pyproject.toml or constraints.txt.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /uv && /uv/bin/pip install --quiet --disable-pip-version-check "$(grep '^uv==' constraints.txt)"
RUN --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt && \
    compile() { /uv/bin/uv --quiet --no-cache pip compile --constraint constraints.txt --no-header --no-annotate "$@"; } && \
    mkdir /lists && echo torch >torch.in && compile --output-file /lists/torch.txt torch.in && \
    compile --output-file /lists/trainer.txt --extra train --extra s3 --extra data pyproject.toml && \
    touch --date=@0 /lists/*

# The trainer's code, compiled: its layer is the same bytes whenever and wherever it is made.
FROM base AS code
COPY teragpt /code/teragpt
RUN chmod -R a+rX /code && \
    PYTHONHASHSEED=0 python3 -m compileall -q -f -j 1 -s /code -p /opt/teragpt/code --invalidation-mode unchecked-hash /code

FROM base AS trainer
WORKDIR /opt/teragpt
COPY --from=requirements /lists/torch.txt ./
RUN --mount=type=bind,from=requirements,source=/uv,target=/uv --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    python3 -m venv --without-pip /opt/teragpt && \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
        /uv/bin/uv --quiet --no-cache pip install --python bin/python --no-deps --requirement torch.txt && \
    { bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash lib || echo "files for newer Pythons"; }
COPY --from=requirements /lists/trainer.txt ./
RUN --mount=type=bind,from=requirements,source=/uv,target=/uv --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
        /uv/bin/uv --quiet --no-cache pip install --python bin/python --no-deps --requirement trainer.txt && \
    find lib -name '*.py' -cnewer trainer.txt -print >installed && \
    { bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -i installed || echo "files for newer Pythons"; }
# The root file system may be read-only and the user any number: whatever is written goes to /tmp or to a volume.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin teragpt
ENV PATH=/opt/teragpt/bin:$PATH PYTHONPATH=/opt/teragpt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=teragpt XDG_CACHE_HOME=/tmp/.cache HF_HOME=/tmp/.cache/huggingface \
    TRITON_CACHE_DIR=/tmp/.cache/triton TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor
COPY --from=code /code /opt/teragpt/code
ARG REVISION=""
LABEL org.opencontainers.image.title="TeraGPT trainer" \
      org.opencontainers.image.description="What the pods of a run execute: PyTorch and the trainer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "teragpt.launch"]

# What the image is made of, as CycloneDX, told from inside it: docker build --target trainer-sbom --output sbom .
FROM trainer AS trainer-bill
ARG VERSION=""
RUN --mount=type=bind,source=tools/sbom.py,target=/sbom.py \
    python /sbom.py teragpt/trainer "$VERSION" /opt/teragpt/lib/python3*/site-packages >/tmp/trainer.cdx.json
FROM scratch AS trainer-sbom
COPY --from=trainer-bill /tmp/trainer.cdx.json /

# The control plane's virtual environment: wheels alone, each with its hash from deploy/locks, then our own. Two builds of
# one commit give the same bytes: one compiling process, one hash seed, and dates by `--timestamp` of the builder. The
# asynchronous half of the Kubernetes client, which nothing here imports, is as large as all the rest and stays out.
FROM base AS controlplane-code
COPY deploy/locks /locks
RUN --mount=type=bind,from=requirements,source=/uv,target=/uv --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt && \
    for place in build teragpt; do python3 -m venv --without-pip /opt/$place; done && \
    install() { /uv/bin/uv --quiet pip install --no-cache --no-deps --require-hashes --only-binary :all: --python "$@"; } && \
    install /opt/build/bin/python --requirement /locks/build.txt && \
    install /opt/teragpt/bin/python --requirement /locks/controlplane.txt && \
    rm -r /opt/teragpt/lib/python3*/site-packages/kubernetes/aio
COPY pyproject.toml README.md LICENSE /source/
COPY teragpt /source/teragpt
COPY controlplane /source/controlplane
WORKDIR /source
RUN --mount=type=bind,from=requirements,source=/uv,target=/uv \
    SOURCE_DATE_EPOCH=315532800 /opt/build/bin/python -m hatchling build --target wheel --directory /wheel && \
    /uv/bin/pip --quiet --python /opt/teragpt/bin/python install --no-index --no-cache-dir --no-deps --no-compile /wheel/* && \
    PYTHONHASHSEED=0 /opt/teragpt/bin/python -m compileall -q -f -j 1 --invalidation-mode unchecked-hash /opt/teragpt/lib

FROM ${BASE} AS controlplane
ARG CONTROLPLANE_PACKAGES="ca-certificates python3"
RUN dpkg -s ${CONTROLPLANE_PACKAGES} >/dev/null 2>&1 || { apt-get update -qq && \
        apt-get install -y -qq --no-install-recommends ${CONTROLPLANE_PACKAGES} && \
        rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache; }
COPY --from=controlplane-code /opt/teragpt /opt/teragpt
# State goes to TERAGPT_HOME, a volume; the root file system may be read-only and the user any number.
ENV PATH=/opt/teragpt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp TERAGPT_HOME=/data
ARG REVISION=""
LABEL org.opencontainers.image.title="TeraGPT control plane" \
      org.opencontainers.image.description="From a model size to a trained GPT with one REST call" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
EXPOSE 8000
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "controlplane.server"]

# Its bill of materials: docker build --target controlplane-sbom --output sbom .
FROM controlplane AS controlplane-bill
ARG VERSION=""
RUN --mount=type=bind,source=tools/sbom.py,target=/sbom.py \
    python /sbom.py teragpt/controlplane "$VERSION" /opt/teragpt/lib/python3*/site-packages >/tmp/controlplane.cdx.json
FROM scratch AS controlplane-sbom
COPY --from=controlplane-bill /tmp/controlplane.cdx.json /
