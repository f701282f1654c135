FROM rust:1.95-slim-bookworm AS build
# The allocator is built with make.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The dependencies alone, with an empty crate in our place: a layer that only a change of these files makes anew.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY benches/profiled.sh benches/profiled.sh
COPY benches/profile benches/profile
# The least processor that the image is for, such as x86-64-v3 (docs/performance.md); none: any of the architecture.
ARG TARGET_CPU=
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && benches/profiled.sh \
    && rm -r src
COPY src src
COPY config config
# cargo goes by modification times, and those of the copied files may be older than the empty crate's.
RUN find src -name '*.rs' -exec touch {} + \
    && benches/profiled.sh

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin aside
COPY --from=build /src/target/profiled/aside /usr/local/bin/aside
COPY config/compose.toml /etc/aside/aside.toml
USER 10001
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["/usr/local/bin/aside", "healthcheck", "--config", "/etc/aside/aside.toml"]
ENTRYPOINT ["/usr/local/bin/aside"]
CMD ["serve", "--config", "/etc/aside/aside.toml"]
