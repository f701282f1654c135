//! Freshness lifetime and initial age (RFC 9111 §4.2, RFC 9213), with the route's ttl on top.
