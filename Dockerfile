# flanx as an image; `flanx launch ... --build` builds and pushes it with the commit as its tag.
#
#   docker build --build-arg=ACCELERATOR=tpu --tag=REGISTRY/flanx:COMMIT .
#
# ACCELERATOR: cpu, tpu (libtpu) or cuda (CUDA's libraries from wheels; the host brings the driver).
FROM python:3.12.12-slim-bookworm

ARG ACCELERATOR=cpu
WORKDIR /src
# the locks first: a change of the code leaves this layer as it is
COPY requirements-light.lock requirements-plan.lock requirements-cuda.lock ./
RUN set -eu; \
    case "$ACCELERATOR" in \
      cpu) more="" ;; \
      tpu) more="-r requirements-plan.lock" ;; \
      cuda) more="-r requirements-cuda.lock" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: give cpu, tpu or cuda" >&2; exit 2 ;; \
    esac; \
    pip install --no-cache-dir --require-hashes -r requirements-light.lock $more

COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY flanx flanx
COPY tasks tasks
COPY gin gin
RUN FLANX_LIGHT=1 pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 1000 flanx

USER flanx
WORKDIR /home/flanx
HEALTHCHECK --interval=5m --timeout=2m CMD ["flanx", "doctor"]
CMD ["flanx", "doctor"]
