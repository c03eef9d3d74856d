# One image for all services; the command picks one: `docker run IMAGE calicoctl version`, `docker run IMAGE typha --help`.
#
#   docker build -t calico-py .         from Python's image, dependencies from the package index
#   ./dev image                         without any registry: from bases made of the distribution's packages, with Docker where it
#                                       runs, else Podman; also writes .run/image.tar for `docker load` and `ctr images import`
#
# BASE is an image of Debian's family with Python 3.11 or newer, or one made by image/base.sh. The compiler and everything else that
# only building needs stays in BUILD_BASE.
ARG BASE=python:3.11-slim-bookworm
ARG BUILD_BASE=$BASE

FROM $BUILD_BASE AS build
ARG UV_VERSION=0.13.9
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_PYTHON_PREFERENCE=only-system PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY image/prepare.sh image/prepare.sh
RUN sh image/prepare.sh compiler
COPY pyproject.toml uv.lock ./
RUN sh image/prepare.sh dependencies
COPY README.md LICENSE ./
COPY libs libs
COPY services services
RUN sh image/prepare.sh project

FROM $BASE
COPY image/prepare.sh /tmp/prepare.sh
RUN sh /tmp/prepare.sh system && rm /tmp/prepare.sh
COPY --from=build /opt/calico/dependencies /opt/calico/dependencies
COPY --from=build /opt/calico/project /opt/calico/project
COPY image/entrypoint /usr/local/bin/calico
ENV PATH=/opt/calico/project/bin:/opt/calico/dependencies/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CNI_BINARY=/opt/calico/project/cni/calico \
    PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="calico-py" \
      org.opencontainers.image.description="Pod networking and network security: all services of Calico in Python" \
      org.opencontainers.image.licenses="Apache-2.0"
# Felix, bgp, node and cni work on the host's network and need root; everything else runs as 65532 (compose.yaml, k8s/).
ENTRYPOINT ["/usr/local/bin/calico"]
# Without a command: all of a node, as `calicoctl node run` wants it.
CMD ["node", "run", "--supervise"]
