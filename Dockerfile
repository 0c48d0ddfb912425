# FinLake as an image: docker build -t finlake .
# The first build compiles RocksDB, DataFusion and the rest: some 25 minutes on two cores. Build
# folder and registry are cache mounts, so that a changed source does not start over.

FROM rust:1.95.0-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends libclang-dev \
    && rm -rf /var/lib/apt/lists/*
# The image's toolchain is the one rust-toolchain.toml names; nothing is to be downloaded for it.
ENV RUSTUP_TOOLCHAIN=1.95.0 CARGO_TARGET_DIR=/target CARGO_TERM_COLOR=never
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/target \
    --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --locked --bin finlake \
    && strip -o /finlake /target/debug/finlake

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/finlake --create-home finlake
COPY --from=build /finlake /usr/local/bin/finlake
COPY LICENSE /usr/share/doc/finlake/LICENSE
USER 10001
WORKDIR /var/lib/finlake
# State stores and, without a REST catalog, catalog and warehouse.
VOLUME /var/lib/finlake
ENV FINLAKE_DATA=/var/lib/finlake FINLAKE_SERVE_LISTEN=0.0.0.0:9464
EXPOSE 9464
# The image has no curl; bash can speak enough HTTP.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
# SIGTERM commits what is open and stops.
STOPSIGNAL SIGTERM
ENTRYPOINT ["finlake"]
CMD ["run"]
