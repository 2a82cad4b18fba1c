# Two images of the server: cuda (the default) and cpu. docs/deployment.md says how they are run.
#
#   docker build --tag llava-api:cuda .
#   docker build --tag llava-api:cpu --target cpu .
#
# pip's own index, credentials or certificate come in as secrets, which are there while pip runs and in no layer:
#   --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.crt,src=/etc/ssl/certs/ca-certificates.crt
#
# The dependencies (3.5 GB, with CUDA 10 GB) are one layer and the server with its demo another one of some 20 MB: a new
# version of the server is a pull of the small one. `make image-test` builds the CPU image and tries it.

# Any Debian 12 or Ubuntu 24.04. Debian's own Python 3.11 is the one that constraints/cpu.txt is made with, and gets its
# security fixes with the base. The release's workflow resolves the tag to its digest of that day.
ARG CPU_BASE=debian:bookworm-slim
# "base", not "runtime": torch's wheels bring the CUDA libraries along. CUDA 13.0 is what torch 2.13 and so vLLM 0.31
# and 0.32 are built for; the host's driver has to be 580 or newer.
ARG CUDA_BASE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701


FROM ${CPU_BASE} AS cpu-system
# No sharing=locked on the caches: buildah keeps the lock from one stage to the next, and waits for itself for ever.
# docker-clean, in Debian's and Ubuntu's images, would empty apt's cache after each package. libnuma1: vLLM's CPU kernels. /data belongs to the server's user; a new volume on it starts with this owner.
RUN --mount=type=cache,id=cpu-apt,target=/var/cache/apt \
    --mount=type=cache,id=cpu-apt-lists,target=/var/lib/apt \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libnuma1 python3 tini \
    && groupadd --gid 10001 llava \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin llava \
    && install --directory --owner 10001 --group 10001 /data \
    && rm -f /var/log/*.log /var/log/apt/* /var/cache/ldconfig/*


FROM cpu-system AS cpu-dependencies
# Further extras of pyproject.toml, one --extra NAME each.
ARG EXTRAS="--extra otel --extra redis"
RUN --mount=type=cache,id=cpu-apt,target=/var/cache/apt \
    --mount=type=cache,id=cpu-apt-lists,target=/var/lib/apt \
    apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /src
COPY pyproject.toml ./
COPY constraints constraints
COPY packaging/torchvision-schema-repair packaging/torchvision-schema-repair
COPY tools/setup_venv.py tools/
# The log may hold an index's address and credentials. pip is not needed again, and ninja not without a compiler.
RUN --mount=type=cache,id=pip,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 tools/setup_venv.py --device cpu --dependencies-only --venv /opt/llava-api ${EXTRAS} \
    && /opt/llava-api/bin/python -m pip uninstall --quiet --yes ninja pip \
    && rm /opt/llava-api/install.log /opt/llava-api/setup-stamp.json \
    && /opt/llava-api/bin/python -c "import site; \
open(site.getsitepackages()[0] + '/llava_api_app.pth', 'w').write('/opt/llava-api/app\n')"


FROM cpu-dependencies AS cpu-app
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,id=pip,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /tmp/pip \
    && /tmp/pip/bin/pip --python /opt/llava-api/bin/python install --quiet --no-deps --target /opt/llava-api/app .


FROM cpu-system AS cpu
COPY --from=cpu-dependencies /opt/llava-api /opt/llava-api
COPY --from=cpu-app /opt/llava-api/app /opt/llava-api/app
COPY packaging/image/health.py /opt/llava-api/health.py
# Everything that is written goes below /data, /tmp and /dev/shm, so that the root file system can be read-only:
# downloaded checkpoints (HF_HOME), converted ones (LLAVA_CACHE_DIR), what vLLM, torch and Triton compile (the rest).
# USER is for libraries that ask for a name where the container runs under a uid that /etc/passwd does not have.
#
# LLAVA_MAKE_KEY: a container has to listen on 0.0.0.0 to be reached at all, and `docker run -p 8000:8000` opens it to
# every network that the host is in, past the host's own firewall rules. Answering everybody by default is out of the
# question, and so is a key in a public image. So if no key is configured, the server makes one for this
# run and shows it, with a curl line, in its log (Jupyter does the same). Keys of your own (LLAVA_API_KEY_FILE,
# LLAVA_API_KEY_DIR) or LLAVA_ALLOW_ANONYMOUS=true, said by you, take its place.
ENV PATH=/opt/llava-api/app/bin:/opt/llava-api/bin:$PATH \
    HOME=/data \
    USER=llava \
    XDG_CACHE_HOME=/data/cache \
    XDG_CONFIG_HOME=/data/config \
    HF_HOME=/data/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/torchinductor \
    TRITON_HOME=/data/cache \
    NUMBA_CACHE_DIR=/data/cache/numba \
    LLAVA_CACHE_DIR=/data/llava-api \
    LLAVA_HOST=0.0.0.0 \
    LLAVA_PORT=8000 \
    LLAVA_MAKE_KEY=true
ARG VERSION=0.1.0
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="llava-api" \
      org.opencontainers.image.description="An OpenAI-compatible API for LLaVA checkpoints, on vLLM" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
VOLUME ["/data"]
EXPOSE 8000
USER 10001:10001
# Half an hour to fetch and load a large checkpoint; Kubernetes has probes of its own and ignores this. A check takes 40 ms
# of CPU. --start-interval would be for the start only, but Debian 12's buildah does not know it.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m --retries=6 \
    CMD ["/usr/bin/python3", "-IS", "/opt/llava-api/health.py"]
ENTRYPOINT ["tini", "--", "llava-api"]
CMD ["serve"]


FROM ${CUDA_BASE} AS cuda-system
# gcc, libc6-dev and python3-dev are no build tools left over: Triton compiles a small C stub for its kernels when they
# are first used, and vLLM ends with "Failed to find C compiler" without them. nvcc is there only as a wheel that
# humming-kernels brings, not on the PATH: what would want it there is FlashInfer, see VLLM_USE_FLASHINFER_SAMPLER below.
RUN --mount=type=cache,id=cuda-apt,target=/var/cache/apt \
    --mount=type=cache,id=cuda-apt-lists,target=/var/lib/apt \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev libnuma1 python3 python3-dev tini \
    && groupadd --gid 10001 llava \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin llava \
    && install --directory --owner 10001 --group 10001 /data \
    && rm -f /var/log/*.log /var/log/apt/* /var/cache/ldconfig/*


FROM cuda-system AS cuda-dependencies
ARG EXTRAS="--extra otel --extra redis"
RUN --mount=type=cache,id=cuda-apt,target=/var/cache/apt \
    --mount=type=cache,id=cuda-apt-lists,target=/var/lib/apt \
    apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /src
COPY pyproject.toml ./
COPY constraints constraints
COPY packaging/torchvision-schema-repair packaging/torchvision-schema-repair
COPY tools/setup_venv.py tools/
RUN --mount=type=cache,id=pip,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 tools/setup_venv.py --device cuda --dependencies-only --venv /opt/llava-api ${EXTRAS} \
    && /opt/llava-api/bin/python -m pip uninstall --quiet --yes pip \
    && rm /opt/llava-api/install.log /opt/llava-api/setup-stamp.json \
    && /opt/llava-api/bin/python -c "import site; \
open(site.getsitepackages()[0] + '/llava_api_app.pth', 'w').write('/opt/llava-api/app\n')"


FROM cuda-dependencies AS cuda-app
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,id=pip,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /tmp/pip \
    && /tmp/pip/bin/pip --python /opt/llava-api/bin/python install --quiet --no-deps --target /opt/llava-api/app .


# The same as the target cpu, but for VLLM_USE_FLASHINFER_SAMPLER: vLLM's Triton kernels sample as well, and
# FlashInfer's would be compiled with nvcc at the start.
FROM cuda-system AS cuda
COPY --from=cuda-dependencies /opt/llava-api /opt/llava-api
COPY --from=cuda-app /opt/llava-api/app /opt/llava-api/app
COPY packaging/image/health.py /opt/llava-api/health.py
ENV PATH=/opt/llava-api/app/bin:/opt/llava-api/bin:$PATH \
    HOME=/data \
    USER=llava \
    XDG_CACHE_HOME=/data/cache \
    XDG_CONFIG_HOME=/data/config \
    HF_HOME=/data/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/torchinductor \
    TRITON_HOME=/data/cache \
    NUMBA_CACHE_DIR=/data/cache/numba \
    LLAVA_CACHE_DIR=/data/llava-api \
    LLAVA_HOST=0.0.0.0 \
    LLAVA_PORT=8000 \
    LLAVA_MAKE_KEY=true \
    VLLM_USE_FLASHINFER_SAMPLER=0
ARG VERSION=0.1.0
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="llava-api" \
      org.opencontainers.image.description="An OpenAI-compatible API for LLaVA checkpoints, on vLLM" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
VOLUME ["/data"]
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m --retries=6 \
    CMD ["/usr/bin/python3", "-IS", "/opt/llava-api/health.py"]
ENTRYPOINT ["tini", "--", "llava-api"]
CMD ["serve"]
