# For those who have a builder at hand; `make image` makes the same image without
# one, and reproducibly.
#
#   docker build --build-arg VERSION=v1 -t registry.example.com/crd-ipam:v1 .
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY apis apis
COPY cmd cmd
COPY generated generated
COPY pkg pkg
RUN GOWORK=off CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/... && \
    mkdir -p /out/etc && \
    echo 'root:x:0:0:root:/:/' >/out/etc/passwd && echo 'nonroot:x:65532:65532:nonroot:/:/' >>/out/etc/passwd && \
    echo 'root:x:0:' >/out/etc/group && echo 'nonroot:x:65532:' >>/out/etc/group

# Static binaries need no base.
FROM scratch
COPY --from=build /out/ /
ENV PATH=/
# Whoever has to run as root, as the installer, says so in its manifest.
USER 65532:65532
