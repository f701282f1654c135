//! The sample API of the demonstration: a catalogue of products, slow on purpose, kept in memory.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Bytes of a PUT's content.
const CONTENT_MAX: usize = 64 * 1024;
/// A pause after accepting failed, as it does when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const CATEGORIES: [&str; 5] = ["kitchen", "garden", "office", "bath", "travel"];
const THINGS: [&str; 10] = ["lamp", "kettle", "chair", "towel", "bag", "clock", "vase", "knife", "basket", "mirror"];
const LOOKS: [&str; 10] = ["plain", "red", "folding", "heavy", "small", "oak", "steel", "striped", "round", "old"];

/// Serves the API on HTTP/1.1 and HTTP/2 until dropped; connections end with it. `delay` passes before each answer.
///
/// | request | answer |
/// |---|---|
/// | `GET /v1/products` | all products, without their prices |
/// | `GET /v1/products/{id}` | one product, 1 to 100, with an ETag and no freshness: that is for the cache to set |
/// | `PUT /v1/products/{id}` | changes the price: `{"price": 5}` |
/// | `GET /v1/categories` | all categories, fresh for five minutes |
pub async fn serve(listener: TcpListener, delay: Duration) {
    let catalogue = Arc::new(Mutex::new(Catalogue::default()));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&catalogue), delay));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, catalogue: Arc<Mutex<Catalogue>>, delay: Duration) {
    // Without it, answers are only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let catalogue = Arc::clone(&catalogue);
        async move { Ok::<_, Infallible>(answer(&catalogue, request, delay).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    // Whatever the client did to the connection, the next one is served.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(catalogue: &Mutex<Catalogue>, request: Request<Incoming>, delay: Duration) -> Response<Full<Bytes>> {
    let (head, content) = request.into_parts();
    let content = Limited::new(content, CONTENT_MAX).collect().await;
    tokio::time::sleep(delay).await;
    let Ok(content) = content else {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "the content is too large, or broke off");
    };
    let mut catalogue = catalogue.lock().unwrap_or_else(PoisonError::into_inner);
    catalogue.answer(&head.method, head.uri.path(), &head.headers, &content.to_bytes())
}

/// What the shop sells.
struct Catalogue {
    products: Vec<Product>,
}

struct Product {
    id: u32,
    price: f64,
    /// How often the product was changed.
    revision: u32,
}

impl Default for Catalogue {
    fn default() -> Self {
        let product = |id: u32| Product { id, price: f64::from(id * 7 % 90 + 10) - 0.05, revision: 1 };
        Self { products: (1..=100).map(product).collect() }
    }
}

impl Catalogue {
    fn answer(&mut self, method: &Method, path: &str, fields: &HeaderMap, content: &[u8]) -> Response<Full<Bytes>> {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        if let Some(id) = path.strip_prefix("/v1/products/") {
            let product = id.parse().ok().and_then(|id: u32| self.products.iter_mut().find(|product| product.id == id));
            return match product {
                None => problem(StatusCode::NOT_FOUND, "no such product: expected an id from 1 to 100"),
                Some(product) if is_read => found(&product.to_json(), &product.etag(), None, fields),
                Some(product) if *method == Method::PUT => product.change(content),
                Some(_) => not_allowed("GET, HEAD, PUT"),
            };
        }
        match path {
            "/v1/products" | "/v1/categories" if !is_read => not_allowed("GET, HEAD"),
            "/v1/products" => {
                let products: Vec<Value> = self.products.iter().map(Product::summary).collect();
                found(&json!({ "products": products }), "\"products-1\"", None, fields)
            }
            "/v1/categories" => {
                let categories = json!({ "categories": CATEGORIES });
                found(&categories, "\"categories-1\"", Some("public, max-age=300"), fields)
            }
            _ => problem(StatusCode::NOT_FOUND, "nothing here: try /v1/products, /v1/products/42 or /v1/categories"),
        }
    }
}

impl Product {
    fn name(&self) -> String {
        let index = self.id as usize - 1;
        format!("{} {}", LOOKS[index / THINGS.len() % LOOKS.len()], THINGS[index % THINGS.len()])
    }

    fn category(&self) -> &'static str {
        CATEGORIES[self.id as usize % CATEGORIES.len()]
    }

    /// What the list says of it: nothing that a PUT changes, for that invalidates the product's own URL alone.
    fn summary(&self) -> Value {
        json!({ "id": self.id, "name": self.name(), "href": format!("/v1/products/{}", self.id) })
    }

    fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name(),
            "category": self.category(),
            "price": self.price,
            "revision": self.revision,
        })
    }

    fn etag(&self) -> String {
        format!("\"{}-{}\"", self.id, self.revision)
    }

    fn change(&mut self, content: &[u8]) -> Response<Full<Bytes>> {
        let wanted = serde_json::from_slice::<Value>(content).ok();
        let price = wanted.as_ref().and_then(|wanted| wanted.get("price")?.as_f64()).filter(|price| *price >= 0.0);
        let Some(price) = price else {
            return problem(StatusCode::BAD_REQUEST, "expected a JSON object with a price, such as {\"price\": 5}");
        };
        self.price = price;
        self.revision += 1;
        let mut response = document(StatusCode::OK, &self.to_json());
        set_etag(&mut response, &self.etag());
        response
    }
}

/// A document, or 304 where the client has it (RFC 9110 §13.1.2).
fn found(value: &Value, etag: &str, freshness: Option<&'static str>, fields: &HeaderMap) -> Response<Full<Bytes>> {
    let mut response = if has(fields, etag) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        document(StatusCode::OK, value)
    };
    set_etag(&mut response, etag);
    if let Some(freshness) = freshness {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(freshness));
    }
    response
}

fn has(fields: &HeaderMap, etag: &str) -> bool {
    let lines = fields.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

fn set_etag(response: &mut Response<Full<Bytes>>, etag: &str) {
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, value);
    }
}

fn not_allowed(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "this method does nothing here");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

fn problem(status: StatusCode, what: &str) -> Response<Full<Bytes>> {
    document(status, &json!({ "error": what }))
}

fn document(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{value:#}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Asks in order; `expected` is the status, and what the content contains.
    #[track_caller]
    fn check(requests: &[(Method, &str, &str)], expected: &[(u16, &str)]) {
        let mut catalogue = Catalogue::default();
        for ((method, path, content), (status, part)) in requests.iter().zip(expected) {
            let response = catalogue.answer(method, path, &HeaderMap::new(), content.as_bytes());
            assert_eq!(response.status().as_u16(), *status, "{method} {path}");
            let text = text(response);
            assert!(text.contains(part), "{method} {path}: {text}");
        }
    }

    fn text(response: Response<Full<Bytes>>) -> String {
        let content = futures_util::FutureExt::now_or_never(response.into_body().collect()).expect("it is all there");
        String::from_utf8(content.expect("content").to_bytes().into()).expect("text")
    }

    #[test]
    fn each_path_has_its_document() {
        check(&[(Method::GET, "/v1/products/42", "")], &[(200, "\"name\": \"small kettle\"")]);
        check(&[(Method::GET, "/v1/products", "")], &[(200, "\"href\": \"/v1/products/100\"")]);
        check(&[(Method::GET, "/v1/categories", "")], &[(200, "\"garden\"")]);
    }

    #[test]
    fn a_put_changes_the_price_that_the_next_get_shows() {
        let path = "/v1/products/42";
        check(
            &[(Method::PUT, path, "{\"price\": 5}"), (Method::GET, path, "")],
            &[(200, "\"price\": 5.0"), (200, "\"price\": 5.0")],
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (method, path, content, status) in [
            (Method::GET, "/", "", 404),
            (Method::GET, "/v1/products/0", "", 404),
            (Method::GET, "/v1/products/101", "", 404),
            (Method::GET, "/v1/products/x", "", 404),
            (Method::PUT, "/v1/products/42", "", 400),
            (Method::PUT, "/v1/products/42", "{\"price\": -1}", 400),
            (Method::PUT, "/v1/products/42", "{\"price\": \"5\"}", 400),
            (Method::DELETE, "/v1/products/42", "", 405),
            (Method::POST, "/v1/products", "", 405),
        ] {
            check(&[(method, path, content)], &[(status, "\"error\"")]);
        }
    }

    #[test]
    fn who_has_the_document_gets_304_until_it_changes() {
        let mut catalogue = Catalogue::default();
        let mut fields = HeaderMap::new();
        fields.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x\", W/\"42-1\""));
        let mut status = |method: &Method, fields: &HeaderMap| {
            catalogue.answer(method, "/v1/products/42", fields, b"{\"price\": 5}").status()
        };
        assert_eq!(status(&Method::GET, &fields), StatusCode::NOT_MODIFIED);
        assert_eq!(status(&Method::PUT, &HeaderMap::new()), StatusCode::OK);
        assert_eq!(status(&Method::GET, &fields), StatusCode::OK);
    }

    #[tokio::test]
    async fn it_is_served_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let client = async {
            let mut stream = TcpStream::connect(address).await.expect("a server");
            let request = b"GET /v1/products/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.expect("a reader");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("text");
            answer
        };
        let answer = tokio::select! {
            answer = client => answer,
            () = serve(listener, Duration::ZERO) => unreachable!("it serves until dropped"),
        };
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("etag: \"1-1\"\r\n"), "{answer}");
    }
}
