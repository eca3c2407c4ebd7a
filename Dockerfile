# `runtime` serves on GPUs from NVIDIA's Triton image, `cpu` from the Triton in the nvidia-pytriton
# wheel. Engines and weights are mounted, all but the demo checkpoint's. See docs/container.md.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver
ARG TRITON_TAG=26.06-py3
# Any image with Python 3.11 or 3.12, its venv and its shared libpython.
ARG PYTHON_IMAGE=docker.io/library/python
ARG PYTHON_TAG=3.12.12-slim-bookworm

# The secret `pip` is a pip.conf for machines that reach another index than PyPI.

FROM ${PYTHON_IMAGE}:${PYTHON_TAG} AS builder
ARG PIP_VERSION=26.3
WORKDIR /src
COPY requirements-build.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /tools \
    && /tools/bin/python -m pip install --no-cache-dir -r requirements-build.lock \
    && /tools/bin/python -m pip install --no-cache-dir --target /wheels/pip "pip==${PIP_VERSION}"
COPY python_backend python_backend
COPY build build
RUN /tools/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index \
    --wheel-dir /wheels ./python_backend ./build
COPY requirements-runtime.lock requirements-triton.lock requirements-gpu.lock /wheels/


FROM ${PYTHON_IMAGE}:${PYTHON_TAG} AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="DiffusionGemma on Triton, for CPUs" \
      org.opencontainers.image.description="Serves DiffusionGemma over gRPC and HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# pip comes from the builder and stays there; two calls, for Triton's wheel asks for older packages.
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/dgemma \
    && export PYTHONPATH=/wheels/pip PIP_NO_CACHE_DIR=1 \
    && /opt/dgemma/bin/python -m pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        -r /wheels/requirements-runtime.lock \
    && /opt/dgemma/bin/python -m pip install --no-deps -r /wheels/requirements-triton.lock /wheels/*.whl \
    && env -u PYTHONPATH ORT_DISABLE_TELEMETRY=1 /opt/dgemma/bin/python -c "import torch, onnxruntime, dgemma_build" \
    && install -d -o 1000 -g 0 -m 0775 /opt/nim/.cache
COPY LICENSE /opt/nim/
COPY model_repository /opt/nim/model_repository
COPY build/demo /opt/nim/demo
# The name is for libraries that ask for the user's, whatever uid that is.
ENV PATH=/opt/dgemma/bin:${PATH} HOME=/tmp LOGNAME=dgemma XDG_CACHE_HOME=/opt/nim/.cache \
    TRITON_CACHE_DIR=/opt/nim/.cache/triton PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /opt/nim
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-m", "dgemma.health_check"]
ENTRYPOINT ["nim-serve"]


FROM ${TRITON_IMAGE}:${TRITON_TAG} AS runtime
ARG TENSORRT_INDEX=https://pypi.nvidia.com
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="DiffusionGemma on Triton, for GPUs" \
      org.opencontainers.image.description="Serves DiffusionGemma over gRPC and HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Triton compiles what starts a kernel where it is loaded: with a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/dgemma \
    && export PYTHONPATH=/wheels/pip PIP_NO_CACHE_DIR=1 \
    && /opt/dgemma/bin/python -m pip install ${TENSORRT_INDEX:+--extra-index-url "${TENSORRT_INDEX}"} \
        -r /wheels/requirements-runtime.lock -r /wheels/requirements-gpu.lock \
    && /opt/dgemma/bin/python -m pip install --no-deps /wheels/*.whl \
    && env -u PYTHONPATH ORT_DISABLE_TELEMETRY=1 /opt/dgemma/bin/python -c "import torch, triton, tensorrt, tensorrt_rtx, dgemma_build" \
    && install -d -o 1000 -g 0 -m 0775 /opt/nim/.cache
COPY LICENSE /opt/nim/
COPY model_repository /opt/nim/model_repository
COPY build/demo /opt/nim/demo
ENV PATH=/opt/dgemma/bin:${PATH} HOME=/tmp LOGNAME=dgemma XDG_CACHE_HOME=/opt/nim/.cache \
    TRITON_CACHE_DIR=/opt/nim/.cache/triton PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /opt/nim
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-m", "dgemma.health_check"]
ENTRYPOINT ["nim-serve"]
