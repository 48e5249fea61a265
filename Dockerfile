# syntax=docker/dockerfile:1
# One image with all of Clip's programs, static, from scratch: docker build -t clip .
# e2e/deploy/image makes the same image without Docker, by reading the last stage below.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p clip -p clip-operator -p clip-csi-node && \
    install -D -t /out target/*-unknown-linux-gnu/release/clip \
        target/*-unknown-linux-gnu/release/clip-operator \
        target/*-unknown-linux-gnu/release/clip-csi-node \
        target/*-unknown-linux-gnu/release/clip-serve \
        target/*-unknown-linux-gnu/release/clip-keeper

FROM scratch
# For people who run the image; pods name their user by number.
COPY --chmod=0644 <<EOF /etc/passwd
root:x:0:0:root:/:/sbin/nologin
nobody:x:65534:65534:nobody:/:/sbin/nologin
EOF
COPY --chmod=0644 <<EOF /etc/group
root:x:0:
nogroup:x:65534:
EOF
# How the C library looks up names: the kubelet writes /etc/hosts and /etc/resolv.conf.
COPY --chmod=0644 <<EOF /etc/nsswitch.conf
hosts: files dns
EOF
COPY --from=build --chmod=0644 /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chmod=0755 /out/clip /usr/bin/clip
COPY --from=build --chmod=0755 /out/clip-operator /usr/bin/clip-operator
COPY --from=build --chmod=0755 /out/clip-csi-node /usr/bin/clip-csi-node
COPY --from=build --chmod=0755 /out/clip-serve /usr/bin/clip-serve
COPY --from=build --chmod=0755 /out/clip-keeper /usr/bin/clip-keeper
ENV PATH=/usr/bin
USER 65534:65534
CMD ["clip", "--help"]
