FROM rust:1.95-slim-bookworm AS build
# The allocator is built with make.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The dependencies alone, with an empty crate in our place: a layer that only a change of Cargo.lock makes anew.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src
COPY src src
COPY config config
COPY benches benches
# With anything in it: laid out by a profile of itself under load, which takes four times as long to build.
ARG PROFILED
# cargo goes by modification times, and those of the copied files may be older than the empty crate's.
RUN find src -name '*.rs' -exec touch {} + \
    && if [ -z "$PROFILED" ]; then cargo build --release --locked && cp target/release/aside .; else \
        apt-get update \
        && apt-get install --yes --no-install-recommends llvm-19 nghttp2-client redis-server wrk \
        && benches/profiled.sh && cp target/profiled/aside .; \
    fi

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin aside
COPY --from=build /src/aside /usr/local/bin/aside
COPY config/compose.toml /etc/aside/aside.toml
USER 10001
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["/usr/local/bin/aside", "healthcheck", "--config", "/etc/aside/aside.toml"]
ENTRYPOINT ["/usr/local/bin/aside"]
CMD ["serve", "--config", "/etc/aside/aside.toml"]
