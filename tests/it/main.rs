//! The proxy from outside: real clients, real upstreams, a real Redis.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod collapse;
mod fleet_collapse;
mod protocols;
mod redis;
mod redis_access;
mod reload;
mod serving;
mod unsafe_methods;
mod upstreams;
mod world;
