# syntax=docker/dockerfile:1
# The images. Target `trainer` is what the pods of a run execute:
#   docker build --target trainer -t REGISTRY/teragpt/trainer:TAG .
# Its layers, from the bottom: Debian, the libraries (some GB, moved once), the code (small, last).
# Behind a mirror of PyPI: --secret id=pip,src=pip.conf --secret id=uv,src=uv.toml; neither ends in a layer.

ARG BASE=debian:12-slim

# Debian with Python; a C++ compiler and Python's headers for what torch.compile and Triton build at run time; the
# libraries of InfiniBand and RoCE that NCCL loads. A base that has the packages already needs no network here.
FROM ${BASE} AS base
ARG PACKAGES="ca-certificates g++ ibverbs-providers libibverbs1 python3-dev python3-venv"
RUN dpkg -s ${PACKAGES} >/dev/null 2>&1 || { \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; }

# The trainer's libraries with everything that they need, at the versions of constraints.txt. Only a change in this list
# makes the layer of libraries anew: not every change of pyproject.toml or of a version that the trainer does not use.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /uv && /uv/bin/pip install --quiet --disable-pip-version-check "$(grep '^uv==' constraints.txt)"
RUN --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt /uv/bin/uv --quiet pip compile pyproject.toml --extra train \
        --constraint constraints.txt --no-header --no-annotate --no-cache --output-file /trainer.txt && \
    touch --date=@0 /trainer.txt

FROM base AS trainer
COPY --from=requirements /trainer.txt /opt/teragpt/requirements.txt
RUN --mount=type=bind,from=requirements,source=/uv,target=/uv --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    python3 -m venv --without-pip /opt/teragpt && \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt /uv/bin/uv --quiet pip install --python /opt/teragpt/bin/python \
        --no-deps --no-cache --requirement /opt/teragpt/requirements.txt && \
    { /opt/teragpt/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/teragpt/lib || \
        echo "some files are for newer Pythons"; }
# The root file system may be read-only and the user any number: whatever is written goes to /tmp or to a volume.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin teragpt
ENV PATH=/opt/teragpt/bin:$PATH PYTHONPATH=/opt/teragpt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=teragpt XDG_CACHE_HOME=/tmp/.cache HF_HOME=/tmp/.cache/huggingface \
    TRITON_CACHE_DIR=/tmp/.cache/triton TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor
COPY teragpt /opt/teragpt/code/teragpt
RUN chmod -R a+rX /opt/teragpt/code && \
    python -m compileall -q --invalidation-mode unchecked-hash /opt/teragpt/code
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "teragpt.launch"]
