//! The servers of an upstream at this moment: those at its addresses, and at each address of its names.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use tokio::sync::watch;

use super::server::{self, Server};
use super::{ServerStats, UpstreamConfig};
use crate::telemetry::Telemetry;
use crate::telemetry::events::Event;

/// Servers at one name; more addresses than this are a mistake somewhere.
const ADDRESSES_MAX: usize = 64;
/// When a name that was not found is looked up again, whatever `resolve_interval` says.
const RETRY: Duration = Duration::from_secs(2);

/// Finds the addresses of a name and port.
pub(super) type Lookup = Arc<dyn Fn(&str, u16) -> Found + Send + Sync>;
type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks the system. Its own timeouts apply: to give up earlier would only pile up questions.
pub(super) fn system() -> Lookup {
    Arc::new(|name, port| {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
    })
}

/// The servers, replaced as a whole where a name's addresses change.
///
/// Names are looked up here alone, in the background: no request waits for one, but for the very first look, and none
/// asks again for what was not found.
pub(super) struct Roster {
    config: Arc<UpstreamConfig>,
    workers: usize,
    telemetry: Arc<Telemetry>,
    lookup: Lookup,
    sites: Box<[Site]>,
    servers: ArcSwap<Vec<Arc<Server>>>,
    /// The names that nobody has looked up yet.
    unknown: watch::Sender<usize>,
}

/// One of the configured URLs.
struct Site {
    url: Uri,
    /// Host and port, where the host is no address.
    name: Option<(Box<str>, u16)>,
    /// Guards the list while it is replaced or copied.
    servers: Mutex<Vec<Arc<Server>>>,
}

impl Roster {
    /// What the `previous` one knew of a name's addresses is used until they are looked up.
    pub fn new(
        config: Arc<UpstreamConfig>,
        workers: usize,
        telemetry: &Arc<Telemetry>,
        lookup: Lookup,
        previous: Option<&Self>,
    ) -> Self {
        let make = |url: &Uri, address| Arc::new(Server::new(&config, url, address, workers, telemetry));
        let sites: Box<[Site]> = config
            .urls
            .iter()
            .map(|url| {
                let name = name_of(url);
                let known = previous.zip(name.as_ref()).map(|(previous, name)| previous.addresses(name));
                let servers = match &name {
                    None => vec![make(url, None)],
                    Some(_) => known.unwrap_or_default().into_iter().map(|at| make(url, Some(at))).collect(),
                };
                Site { url: url.clone(), name, servers: Mutex::new(servers) }
            })
            .collect();
        let unknown = sites.iter().filter(|site| site.servers().is_empty()).count();
        let servers = ArcSwap::from_pointee(all(&sites));
        let telemetry = Arc::clone(telemetry);
        Self { config, workers, telemetry, lookup, sites, servers, unknown: watch::Sender::new(unknown) }
    }

    /// The servers as they are.
    pub fn now(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// The same; while there are none because names have never been looked up, waits for that within the connect timeout.
    pub async fn get(&self) -> Arc<Vec<Arc<Server>>> {
        let servers = self.now();
        if !servers.is_empty() {
            return servers;
        }
        let mut unknown = self.unknown.subscribe();
        // Whether it came in time or not, what there is now is all there is.
        let _ = tokio::time::timeout(self.config.connect_timeout, unknown.wait_for(|count| *count == 0)).await;
        self.now()
    }

    /// The figures, and the names that have no address.
    pub fn stats(&self) -> Vec<ServerStats> {
        let of_site = |site: &Site| {
            let stats: Vec<_> = site.servers().iter().map(|server| server.stats()).collect();
            if stats.is_empty() { vec![ServerStats::unresolved(server::named(&site.url))] } else { stats }
        };
        self.sites.iter().flat_map(of_site).collect()
    }

    /// Looks the names up, again and again; never ends while there are any.
    pub async fn keep(&self) {
        join_all(self.sites.iter().filter_map(|site| Some(self.keep_site(site, site.name.as_ref()?)))).await;
    }

    async fn keep_site(&self, site: &Site, (name, port): &(Box<str>, u16)) {
        // What an earlier configuration knew is as good as looked up.
        let mut is_new = site.servers().is_empty();
        let mut failed = false;
        loop {
            let found = (self.lookup)(name, *port).await.and_then(some);
            match &found {
                Ok(addresses) => self.set(site, addresses),
                Err(cause) if !failed => self.telemetry.emit(&Event::NameNotFound {
                    upstream: self.config.name.to_string(),
                    name: name.to_string(),
                    cause: cause.to_string(),
                }),
                Err(_told_before) => {}
            }
            failed = found.is_err();
            if std::mem::take(&mut is_new) {
                self.unknown.send_modify(|count| *count = count.saturating_sub(1));
            }
            let interval = self.config.resolve_interval;
            tokio::time::sleep(if failed { interval.min(RETRY) } else { interval }).await;
        }
    }

    /// Servers whose addresses stay keep their connections and health; those that go end with their last request.
    fn set(&self, site: &Site, addresses: &[SocketAddr]) {
        let before = site.servers().clone();
        if before.iter().map(|server| server.at()).eq(addresses.iter().copied().map(Some)) {
            return;
        }
        let make = |address| {
            let known = before.iter().find(|server| server.at() == Some(address)).cloned();
            let new = || Server::new(&self.config, &site.url, Some(address), self.workers, &self.telemetry);
            known.unwrap_or_else(|| Arc::new(new()))
        };
        *site.servers() = addresses.iter().copied().map(make).collect();
        self.servers.store(Arc::new(all(&self.sites)));
        self.telemetry.emit(&Event::AddressesFound {
            upstream: self.config.name.to_string(),
            name: site.url.host().unwrap_or_default().to_owned(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        });
    }

    fn addresses(&self, name: &(Box<str>, u16)) -> Vec<SocketAddr> {
        let site = self.sites.iter().find(|site| site.name.as_ref() == Some(name));
        site.map(|site| site.servers().iter().filter_map(|server| server.at()).collect()).unwrap_or_default()
    }
}

impl Site {
    fn servers(&self) -> MutexGuard<'_, Vec<Arc<Server>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all(sites: &[Site]) -> Vec<Arc<Server>> {
    sites.iter().flat_map(|site| site.servers().clone()).collect()
}

/// Addresses in an order that does not change from answer to answer.
fn some(mut addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

fn name_of(url: &Uri) -> Option<(Box<str>, u16)> {
    let host = url.host().unwrap_or_default();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
    (!is_address).then(|| (host.into(), url.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::{answering, config, fetch, get, looking_up, refusing, telemetry, text};
    use super::super::{Upstream, UpstreamConfig, UpstreamError};
    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const OFTEN: Duration = Duration::from_millis(5);

    /// Names as a test says, and how often they were looked up.
    #[derive(Clone, Default)]
    struct Names {
        addresses: Arc<Mutex<Option<Vec<SocketAddr>>>>,
        lookups: Arc<AtomicUsize>,
    }

    impl Names {
        fn of(addresses: &[SocketAddr]) -> Self {
            let names = Self::default();
            names.become_known(addresses);
            names
        }

        fn become_known(&self, addresses: &[SocketAddr]) {
            *self.addresses.lock().unwrap() = Some(addresses.to_vec());
        }

        fn fail(&self) {
            *self.addresses.lock().unwrap() = None;
        }

        fn lookup(&self) -> Lookup {
            let names = self.clone();
            Arc::new(move |name, port| {
                assert_eq!((name, port), ("backend.test", 81));
                names.lookups.fetch_add(1, Ordering::SeqCst);
                let found = names.addresses.lock().unwrap().clone();
                Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
            })
        }

        async fn looked_up_again(&self) {
            let before = self.lookups.load(Ordering::SeqCst);
            until(|| self.lookups.load(Ordering::SeqCst) >= before + 2).await;
        }
    }

    async fn until(holds: impl Fn() -> bool) {
        let reached = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.expect("it comes to pass");
    }

    fn named(resolve_interval: Duration) -> UpstreamConfig {
        UpstreamConfig { resolve_interval, ..config(&["http://backend.test:81".to_owned()]) }
    }

    async fn serving() -> (SocketAddr, Arc<AtomicUsize>) {
        let (url, count) = answering(OK).await;
        (url.strip_prefix("http://").unwrap().parse().unwrap(), count)
    }

    fn addresses(upstream: &Upstream) -> Vec<SocketAddr> {
        upstream.stats().into_iter().filter_map(|stats| stats.address).collect()
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_a_server() {
        let ([first, second], counts) = {
            let (first, second) = (serving().await, serving().await);
            ([first.0, second.0], [first.1, second.1])
        };
        let names = Names::of(&[second, first, second]);
        let upstream = looking_up(named(Duration::from_secs(3600)), names.lookup());
        for _ in 0..6 {
            assert_eq!(text(fetch(&upstream, get("/")).await.expect("a response")).await, "ok");
        }
        assert_eq!(counts.map(|count| count.load(Ordering::SeqCst)), [3, 3]);
        assert_eq!(names.lookups.load(Ordering::SeqCst), 1, "requests look nothing up");
        let expected = if first < second { [first, second] } else { [second, first] };
        assert_eq!(addresses(&upstream), expected);
        assert!(upstream.stats().iter().all(|stats| stats.url == "http://backend.test:81" && stats.state == "up"));
    }

    #[tokio::test]
    async fn addresses_come_and_go_and_those_that_stay_keep_what_is_known_of_them() {
        let ((first, _), (second, _)) = (serving().await, serving().await);
        let names = Names::of(&[first]);
        let upstream = looking_up(named(OFTEN), names.lookup());
        fetch(&upstream, get("/")).await.expect("a response");
        let server = Arc::clone(&upstream.roster.now()[0]);
        names.become_known(&[first, second]);
        until(|| addresses(&upstream).len() == 2).await;
        assert!(upstream.roster.now().iter().any(|it| Arc::ptr_eq(it, &server)));
        names.become_known(&[second]);
        until(|| addresses(&upstream) == [second]).await;
        assert_eq!(text(fetch(&upstream, get("/")).await.expect("a response")).await, "ok");
        assert_eq!(server.stats().requests, 1, "who has gone is not asked");
    }

    #[tokio::test]
    async fn a_name_that_is_no_longer_found_keeps_its_addresses() {
        let (address, _) = serving().await;
        let names = Names::of(&[address]);
        let upstream = looking_up(named(OFTEN), names.lookup());
        fetch(&upstream, get("/")).await.expect("a response");
        for fail in [true, false] {
            if fail {
                names.fail()
            } else {
                names.become_known(&[])
            }
            names.looked_up_again().await;
            assert_eq!(addresses(&upstream), [address]);
            fetch(&upstream, get("/")).await.expect("a response");
        }
    }

    #[tokio::test]
    async fn a_name_that_was_never_found_is_asked_for_in_the_background_alone() {
        let names = Names::default();
        let upstream = looking_up(named(Duration::from_secs(3600)), names.lookup());
        for _ in 0..1000 {
            assert_eq!(fetch(&upstream, get("/")).await.err(), Some(UpstreamError::Connect));
        }
        assert_eq!(names.lookups.load(Ordering::SeqCst), 1);
        assert_eq!(upstream.stats()[0].state, "unresolved");
        let (address, _) = serving().await;
        names.become_known(&[address]);
        until(|| addresses(&upstream) == [address]).await;
        fetch(&upstream, get("/")).await.expect("it is found long before the interval has passed");
    }

    #[tokio::test]
    async fn the_first_requests_wait_for_the_first_look_within_the_connect_timeout() {
        let (address, _) = serving().await;
        let slow: Lookup = Arc::new(move |_, _| {
            Box::pin(async move {
                // This is the resolver's slowness itself.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(vec![address])
            })
        });
        let upstream = looking_up(named(OFTEN), slow);
        assert_eq!(text(fetch(&upstream, get("/")).await.expect("a response")).await, "ok");
        let never: Lookup = Arc::new(|_, _| Box::pin(std::future::pending()));
        let impatient = UpstreamConfig { connect_timeout: Duration::from_millis(50), ..named(OFTEN) };
        assert_eq!(fetch(&looking_up(impatient, never), get("/")).await.err(), Some(UpstreamError::Connect));
    }

    #[tokio::test]
    async fn a_changed_configuration_goes_on_with_the_addresses_that_were_known() {
        let (address, _) = serving().await;
        let names = Names::of(&[address]);
        let upstream = looking_up(named(OFTEN), names.lookup());
        fetch(&upstream, get("/")).await.expect("a response");
        names.fail();
        let changed = UpstreamConfig { retries: 7, ..named(OFTEN) };
        let next = Upstream::new(changed, 1, &telemetry(), names.lookup(), Some(&upstream.roster));
        assert_eq!(addresses(&next), [address]);
        fetch(&next, get("/")).await.expect("a response, before anybody looks");
    }

    #[tokio::test]
    async fn a_dead_address_among_others_is_passed_over() {
        let (address, _) = serving().await;
        let dead: SocketAddr = refusing().await.strip_prefix("http://").unwrap().parse().unwrap();
        let upstream = looking_up(named(OFTEN), Names::of(&[dead, address]).lookup());
        for _ in 0..10 {
            assert_eq!(text(fetch(&upstream, get("/")).await.expect("a response")).await, "ok");
        }
    }

    #[test]
    fn only_names_are_looked_up() {
        let check = |url: &str, expected: Option<(&str, u16)>| {
            let name = name_of(&url.parse().unwrap());
            assert_eq!(name.as_ref().map(|(name, port)| (&**name, *port)), expected, "{url}");
        };
        check("http://a.test", Some(("a.test", 80)));
        check("https://a.test", Some(("a.test", 443)));
        check("https://localhost:1", Some(("localhost", 1)));
        check("http://127.0.0.1:1", None);
        check("http://[::1]:1", None);
    }
}
