//! The proxy from outside: real clients, real upstreams, a real Redis.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin_plane;
mod broken;
mod check_live;
mod collapse;
mod deception;
mod fleet;
mod fleet_collapse;
mod framing;
mod hostile_hosts;
mod http2_floods;
mod http2_messages;
mod keying;
mod limits;
mod oracle;
mod poisoning;
mod protocols;
mod purge_command;
mod purging;
mod redis;
mod redis_access;
mod redis_faults;
mod redis_lost;
mod redis_poison;
mod redis_refusals;
mod redis_rights;
mod redis_topology;
mod redis_trouble;
mod reload;
mod serving;
mod soak;
mod unsafe_methods;
mod upstream_choice;
mod upstream_faults;
mod upstream_framing;
mod upstream_health;
mod upstreams;
mod world;
