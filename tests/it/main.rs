//! The proxy from outside: real clients, real upstreams, a real Redis.

mod broken;
mod collapse;
mod protocols;
mod redis;
mod reload;
mod serving;
mod unsafe_methods;
mod world;
