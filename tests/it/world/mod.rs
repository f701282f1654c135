//! The parts a test is made of: a real upstream, a real Redis, the proxy itself, and real clients.

pub mod certificates;
pub mod cluster;
pub mod load;
pub mod origin;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod relay;
pub mod sentinels;
pub mod stage;

use std::sync::Once;

pub use certificates::Certificates;
pub use cluster::Cluster;
pub use load::Load;
pub use origin::{Origin, RawOrigin, reply};
pub use process::Process;
pub use proxy::Proxy;
pub use redis::Redis;
pub use sentinels::Sentinels;
pub use stage::Stage;

/// A client that keeps connections, follows no redirects, and says HTTP/1.1.
pub fn client() -> reqwest::Client {
    builder().http1_only().build().expect("a client can be built")
}

/// The same for HTTP/2 with prior knowledge.
pub fn h2c_client() -> reqwest::Client {
    builder().http2_prior_knowledge().build().expect("a client can be built")
}

/// A client to be finished by the test.
pub fn builder() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another test of this process may have been first; it installs the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

/// What a client saw: status, Cache-Status, and the whole body.
#[derive(Debug, PartialEq, Eq)]
pub struct Got {
    pub status: u16,
    pub cache_status: String,
    pub body: String,
}

/// Reads a response to its end; panics when it breaks off.
pub async fn got(response: reqwest::Response) -> Got {
    let cache_status = field(&response, "cache-status");
    let status = response.status().as_u16();
    Got { status, cache_status, body: response.text().await.expect("the body is whole") }
}

/// A response's field, empty where it has none.
pub fn field(response: &reqwest::Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
}

/// GETs `url` and reads the answer to its end.
pub async fn get(client: &reqwest::Client, url: &str) -> Got {
    got(client.get(url).send().await.expect("an answer")).await
}
