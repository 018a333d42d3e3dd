//! Goal: who is slow to ask loses the connection, and nobody else notices.
//! Method: a listener with little patience, and clients that stop in the middle.

use std::net::SocketAddr;

use axum::http::StatusCode;

use super::*;

const OK: &str = "HTTP/1.1 200 OK";

/// A server that reads bodies whole and answers with their length, or says
/// that a body did not come.
async fn start(patience: Patience) -> (SocketAddr, Shutdown) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let answer = |request: Request| async {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
        let (status, text) = match body {
            Ok(body) => (StatusCode::OK, body.len().to_string()),
            Err(error) => (StatusCode::REQUEST_TIMEOUT, error.to_string()),
        };
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        Ok::<_, BoxError>(response)
    };
    let serving = serve(
        "test",
        listener,
        16,
        patience,
        shutdown.clone(),
        move || tower::service_fn(answer),
    );
    tokio::spawn(serving);
    (addr, shutdown)
}

/// Little of one kind, and much of the others.
fn patience() -> Patience {
    let long = Duration::from_secs(600);
    Patience {
        headers: long,
        body: long,
        reader: long,
    }
}

/// What comes after `sent` until the server hangs up.
async fn answer_to(addr: SocketAddr, sent: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Hung up on, in whichever way.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn post(length: usize, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() {
    let (addr, shutdown) = start(Patience {
        headers: Duration::from_millis(20),
        ..patience()
    })
    .await;
    for sent in ["", "POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nhost: local"] {
        let answer = answer_to(addr, sent).await;
        assert!(!answer.contains("200"), "{sent:?}: {answer}");
    }
    // Who asks and then rests is answered, and then hung up on.
    let answer = answer_to(addr, &post(2, "ab")).await;
    assert!(answer.starts_with(OK) && answer.ends_with('2'), "{answer}");
    shutdown.trigger();
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (addr, shutdown) = start(Patience {
        body: Duration::from_millis(20),
        ..patience()
    })
    .await;
    for body in ["", "a", "abcdefghi"] {
        let answer = answer_to(addr, &post(10, body)).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{body:?}: {answer}");
        assert!(answer.contains("did not come in time"), "{answer}");
    }
    let whole = format!(
        "{}connection: close\r\n\r\n",
        &post(0, "")[..post(0, "").len() - 2]
    );
    let answer = answer_to(addr, &whole).await;
    assert!(answer.starts_with(OK) && answer.ends_with('0'), "{answer}");
    shutdown.trigger();
}
