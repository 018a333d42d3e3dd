//! Goal: who does not read cannot keep a place. Method: a client that connects
//! and never reads.

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;

#[tokio::test]
async fn who_does_not_read_loses_the_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let _client = client.unwrap();
    let places = Arc::new(Semaphore::new(1));
    let place = Arc::clone(&places).try_acquire_owned().unwrap();
    let timeout = Duration::from_millis(10);
    let open = Open::connection("rpc");
    let mut connection = Connection::new(accepted.unwrap().0, (place, open), timeout);
    let chunk = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = connection.write_all(&chunk).await {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(places.available_permits(), 0);
    drop(connection);
    assert_eq!(places.available_permits(), 1);
}
