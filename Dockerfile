# One image with both binaries and nothing else that runs: no shell, no package manager.
#
# The tags are exact as far as tags can be. For an image that is the same to the byte, pass digests:
#   docker build --build-arg BUILDER=rust@sha256:... --build-arg BASE=debian@sha256:... .
# No BuildKit feature is needed.
ARG BUILDER=rust:1.95.0-slim-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package matrix2acrobits-api --package matrix2acrobits-worker

# The root file system: the binaries, the libraries that they are linked to, the root certificates, a
# user and a folder for the database. The package records are for scanners.
FROM ${BASE} AS assemble
WORKDIR /image
COPY --from=build /src/target/release/matrix2acrobits-api /src/target/release/matrix2acrobits-worker usr/local/bin/
COPY --from=build /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
RUN set -eu; \
    ldd usr/local/bin/* | grep -o '/[^ :]*\.so[^ :]*' | sort -u | while read -r library; do \
        mkdir -p ".${library%/*}"; \
        cp --dereference "$library" ".$library"; \
    done; \
    mkdir -p var/lib/dpkg/status.d; \
    for package in libc6 libgcc-s1; do \
        dpkg-query --status "$package" > "var/lib/dpkg/status.d/$package"; \
    done; \
    cp /etc/os-release etc/; \
    echo 'matrix2acrobits:x:10001:10001::/data:/usr/sbin/nologin' > etc/passwd; \
    echo 'matrix2acrobits:x:10001:' > etc/group; \
    echo 'hosts: files dns' > etc/nsswitch.conf; \
    mkdir data tmp; \
    chmod 700 data; \
    chmod 1777 tmp; \
    chown 10001:10001 data

FROM scratch
COPY --from=assemble /image/ /
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="matrix2acrobits" \
      org.opencontainers.image.description="Matrix push gateway for Acrobits softphones: api and worker" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/usr/local/bin \
    DATABASE_URL=sqlite:///data/matrix2acrobits.db
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080 9090 9091
STOPSIGNAL SIGTERM
# For the api; a container that runs the worker asks matrix2acrobits-worker instead (docker-compose.yml).
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["matrix2acrobits-api", "healthcheck"]
CMD ["matrix2acrobits-api"]
