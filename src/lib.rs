//! `aside`: a cache-aside caching reverse proxy.

pub mod admin;
pub mod boxed;
pub mod check;
pub mod cli;
pub mod clock;
pub mod collapse;
pub mod config;
pub mod demo;
pub mod fields;
pub mod gather;
pub mod generation;
pub mod key;
pub mod policy;
pub mod proxy;
pub mod purge;
pub mod reload;
pub mod route;
pub mod server;
pub mod store;
pub mod stored;
pub mod target;
pub mod telemetry;
pub mod upstream;
