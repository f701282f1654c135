//! HTTP/2 clients that break streams off, send frames without end, or read nothing: their connection ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::broken::resident_bytes;
use crate::protocols::{GET_A, frame};
use crate::world::proxy::one_route;
use crate::world::{Origin, Proxy, get, h2c_client, reply};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;

const PATIENCE: Duration = Duration::from_secs(20);

/// An upstream that never answers but for `/clean`.
fn origin() -> Origin {
    Origin::start(|seen| async move {
        if seen.target != "/clean" {
            std::future::pending::<()>().await;
        }
        reply(200, &[("cache-control", "max-age=60")], "clean")
    })
}

/// A connection that has begun, with `settings`.
async fn connect(proxy: &Proxy, settings: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // What nobody reads is soon too much.
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut stream = socket.connect(proxy.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
    stream
}

/// Writes all of `flood`, or as much as is taken, and reads to the end: the code of the GOAWAY.
async fn until_gone(stream: TcpStream, flood: Vec<u8>) -> Option<u32> {
    let (mut read, mut write) = stream.into_split();
    let writing = async {
        // The connection may end before all is taken.
        let _ = write.write_all(&flood).await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        let (mut code, mut head) = (None, [0; 9]);
        while read.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
            if read.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    };
    let ended = async {
        tokio::select! {
            () = writing => None,
            code = reading => code,
        }
    };
    timeout(PATIENCE, ended).await.expect("the connection ends")
}

async fn check_clean(proxy: &Proxy) {
    let answer = get(&h2c_client(), &proxy.url("/clean")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "clean"));
}

/// The flood ends its connection as excess, is counted, and costs the upstream few requests.
async fn check_excess(flood: Vec<u8>) {
    let origin = origin();
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    let code = until_gone(connect(&proxy, &[]).await, flood).await;
    // Where frames are still on their way, the end may come as a reset, before the reason.
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    let counted = async {
        // The connection is gone a moment before it is counted.
        while proxy.stats().await["limits"]["http2_resets"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("it is counted once");
    assert!(origin.count("/a") <= 200, "{} requests at the upstream", origin.count("/a"));
    check_clean(&proxy).await;
}

#[tokio::test]
async fn streams_reset_as_soon_as_they_are_opened_end_the_connection() {
    let stream = |nth: u32| {
        let number = 1 + 2 * nth;
        [frame(HEADERS, END_STREAM | END_HEADERS, number, GET_A), frame(RST_STREAM, 0, number, &[0, 0, 0, 8])].concat()
    };
    check_excess((0..10_000).flat_map(stream).collect()).await;
}

#[tokio::test]
async fn streams_that_the_proxy_is_made_to_reset_end_the_connection() {
    let stream = |nth: u32| {
        let number = 1 + 2 * nth;
        let beyond = frame(WINDOW_UPDATE, 0, number, &[0x7f, 0xff, 0xff, 0xff]);
        [frame(HEADERS, END_STREAM | END_HEADERS, number, GET_A), beyond].concat()
    };
    check_excess((0..10_000).flat_map(stream).collect()).await;
}

#[tokio::test]
async fn a_window_that_is_opened_by_nothing_ends_the_connection() {
    const PROTOCOL_ERROR: u32 = 1;
    let origin = origin();
    let proxy = Proxy::start(&one_route(&origin.url(), "cache = false"));
    let first = frame(HEADERS, END_STREAM | END_HEADERS, 1, GET_A);
    let flood = frame(WINDOW_UPDATE, 0, 1, &[0; 4]).repeat(1000);
    let code = until_gone(connect(&proxy, &[]).await, [first, flood].concat()).await;
    assert!(code.is_none_or(|code| code == PROTOCOL_ERROR), "{code:?}");
    check_clean(&proxy).await;
}

#[tokio::test]
async fn a_head_that_is_continued_without_end_ends_the_connection() {
    let piece = [b"\x00\x01x\x7f\x80\x01".as_slice(), &[b'v'; 255]].concat();
    let first = frame(HEADERS, END_STREAM, 1, GET_A);
    let more = (0..10_000).flat_map(|_| frame(CONTINUATION, 0, 1, &piece));
    check_excess(first.into_iter().chain(more).collect()).await;
}

#[tokio::test]
async fn empty_frames_without_end_end_the_connection() {
    let post = [b"\x83\x86\x04\x02/a\x01\x06a.test".as_slice()].concat();
    let first = frame(HEADERS, END_HEADERS, 1, &post);
    check_excess(first.into_iter().chain((0..200_000).flat_map(|_| frame(DATA, 0, 1, &[]))).collect()).await;
}

#[tokio::test]
async fn questions_whose_answers_nobody_reads_take_no_memory() {
    let origin = origin();
    let toml = format!("[server.limits]\nidle_timeout = \"500ms\"\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 4, 0, 0, 0xff, 0xff])] {
        let mut stream = connect(&proxy, &[]).await;
        let piece = frame(kind, 0, 0, payload).repeat(1000);
        let (before, mut peak) = (resident_bytes(), 0);
        let flood = async {
            while stream.write_all(&piece).await.is_ok() {
                peak = peak.max(resident_bytes());
            }
        };
        timeout(PATIENCE, flood).await.expect("the connection ends");
        assert!(peak < before + (32 << 20), "{before} bytes before, {peak} at the peak");
        check_clean(&proxy).await;
    }
}

#[tokio::test]
async fn a_client_that_only_asks_whether_we_are_there_is_left() {
    let origin = origin();
    let toml = format!("[server.limits]\nidle_timeout = \"1s\"\n\n{}", one_route(&origin.url(), ""));
    let proxy = Proxy::start(&toml);
    let (mut read, mut write) = connect(&proxy, &[]).await.into_split();
    let asking = async {
        let questions = frame(PING, 0, 0, &[0; 8]).repeat(100);
        while write.write_all(&questions).await.is_ok() {
            // This is the client's own pace.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut answers = vec![0; 64 << 10];
        while let Ok(1..) = read.read(&mut answers).await {}
    };
    let ended = async {
        tokio::select! {
            () = asking => {}
            () = reading => {}
        }
    };
    timeout(PATIENCE, ended).await.expect("the connection ends");
    check_clean(&proxy).await;
    assert!(proxy.stats().await["limits"]["idle_timeout"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn a_client_that_opens_its_window_drip_by_drip_is_left() {
    let origin = Origin::start(|_| async { reply(200, &[("cache-control", "max-age=60")], &"x".repeat(1 << 20)) });
    let limits = "[server.limits]\nidle_timeout = \"1s\"\nanswer_rate_min = \"1 MiB\"";
    let proxy = Proxy::start(&format!("{limits}\n\n{}", one_route(&origin.url(), "")));
    // SETTINGS_INITIAL_WINDOW_SIZE of nothing.
    let (mut read, mut write) = connect(&proxy, &[0, 4, 0, 0, 0, 0]).await.into_split();
    write.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET_A)).await.unwrap();
    let dripping = async {
        while write.write_all(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 2, 0])).await.is_ok() {
            // This is the client's slowness itself.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let (mut content, mut total) = (vec![0; 64 << 10], 0);
        while let Ok(length @ 1..) = read.read(&mut content).await {
            total += length;
        }
        total
    };
    let ended = async {
        tokio::select! {
            () = dripping => 0,
            total = reading => total,
        }
    };
    let total = timeout(PATIENCE, ended).await.expect("the connection ends");
    assert!(total > 1000, "some of it came: {total} bytes");
    assert_eq!(proxy.stats().await["limits"]["answer_rate_min"], 1);
    assert_eq!(get(&h2c_client(), &proxy.url("/a")).await.body.len(), 1 << 20);
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_and_the_rest_go_on() {
    let origin = origin();
    let toml = format!("[server.limits]\nhttp2_streams = 10\n\n{}", one_route(&origin.url(), "cache = false"));
    let proxy = Proxy::start(&toml);
    let mut stream = connect(&proxy, &[]).await;
    let flood: Vec<u8> = (0..30).flat_map(|nth| frame(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * nth, GET_A)).collect();
    stream.write_all(&flood).await.unwrap();
    let reading = async {
        let (mut refused, mut head) = (0, [0; 9]);
        while refused < 20 {
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            refused += usize::from(head[3] == RST_STREAM && payload == REFUSED_STREAM.to_be_bytes());
        }
    };
    timeout(PATIENCE, reading).await.expect("twenty are refused");
    check_clean(&proxy).await;
    assert_eq!(origin.count("/a"), 10);
}

#[tokio::test]
async fn a_list_of_fields_beyond_the_bound_is_refused_and_counted() {
    let origin = origin();
    let proxy = Proxy::start(&one_route(&origin.url(), ""));
    let client = h2c_client();
    for bytes in [17 << 10, 20 << 10, 64 << 10] {
        let request = client.get(proxy.url("/clean")).header("cookie", "c".repeat(bytes));
        // The client itself keeps to the bound that it is told.
        let status = request.send().await.map(|response| response.status().as_u16());
        assert!(matches!(status, Ok(431) | Err(_)), "{bytes}: {status:?}");
    }
    assert!(proxy.stats().await["limits"]["header_size"].as_u64().unwrap() >= 1);
    check_clean(&proxy).await;
}
