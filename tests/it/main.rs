//! The proxy from outside: real clients, real upstreams, a real Redis.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod check_live;
mod collapse;
mod fleet;
mod fleet_collapse;
mod keying;
mod oracle;
mod protocols;
mod purge_command;
mod purging;
mod redis;
mod redis_access;
mod redis_rights;
mod redis_topology;
mod redis_trouble;
mod reload;
mod serving;
mod unsafe_methods;
mod upstreams;
mod world;
