//! metrics

/// The counters of one route.
#[derive(Debug, Default)]
pub struct RouteCounters {}
