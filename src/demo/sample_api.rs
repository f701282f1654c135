//! stub
/// stub
pub async fn serve(listener: tokio::net::TcpListener, delay: std::time::Duration) {
    todo!("{listener:?}{delay:?}")
}
