//! `authType: awsiam`: a real broker behind a front that asks for a token and checks its signature, as Amazon MSK does.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mecha_components_api::ErrorKind;
use mecha_testkit::Inbox;
use mecha_testkit::servers::{KafkaOptions, free_port};
use parking_lot::Mutex;
use ring::{digest, hmac};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Running, attached, publish, pubsub, until};

const SECRET: &str = "hunter2/AWS+secret";
const HANDSHAKE: i16 = 17;
const AUTHENTICATE: i16 = 36;
/// "SASL authentication failed."
const REFUSED: i16 = 58;

/// Takes connections on a port; each logs in here and goes on to the broker.
struct Front {
    tokens: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    async fn start(port: u16, broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let tokens: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&tokens);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, broker, Arc::clone(&seen)));
            }
        });
        Self { tokens, task }
    }
}

/// A request or an answer, without its length.
async fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_i32().await?;
    let mut frame = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    stream.write_all(&i32::try_from(frame.len()).unwrap().to_be_bytes()).await?;
    stream.write_all(frame).await
}

async fn serve(mut client: TcpStream, broker: u16, tokens: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut broker = TcpStream::connect(("127.0.0.1", broker)).await?;
    loop {
        let request = frame(&mut client).await?;
        let key = i16::from_be_bytes([request[0], request[1]]);
        let correlation = &request[4..8];
        match key {
            HANDSHAKE => {
                let mechanisms = [&0_i16.to_be_bytes()[..], &1_i32.to_be_bytes(), &text("OAUTHBEARER")].concat();
                send(&mut client, &[correlation, &mechanisms].concat()).await?;
            }
            AUTHENTICATE => {
                let version = i16::from_be_bytes([request[2], request[3]]);
                assert!(version < 2, "later versions have another layout");
                // Behind the header with the name of the client.
                let name = usize::from(u16::from_be_bytes([request[8], request[9]]));
                let body = String::from_utf8_lossy(&request[10 + name + 4..]).into_owned();
                let token = body.split('\u{1}').find_map(|part| part.strip_prefix("auth=Bearer ")).unwrap().to_owned();
                let verdict = verify(&token);
                tokens.lock().push(token);
                let (code, message) = match &verdict {
                    Ok(()) => (0, vec![0xff, 0xff]),
                    Err(why) => (REFUSED, text(why)),
                };
                let life: &[u8] = if version == 1 { &[0; 8] } else { &[] };
                let answer = [correlation, &i16::to_be_bytes(code), &message, &0_i32.to_be_bytes(), life].concat();
                send(&mut client, &answer).await?;
                if verdict.is_ok() {
                    copy_bidirectional(&mut client, &mut broker).await?;
                }
                return Ok(());
            }
            // What the broker can do is asked before.
            _ => {
                send(&mut broker, &request).await?;
                let answer = frame(&mut broker).await?;
                send(&mut client, &answer).await?;
            }
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Signs again what the token says, as "Signature Version 4 for API requests" of AWS has it.
fn verify(token: &str) -> Result<(), String> {
    let url = URL_SAFE_NO_PAD.decode(token).map_err(|e| e.to_string())?;
    let url = String::from_utf8(url).map_err(|e| e.to_string())?;
    let query = url.strip_prefix("https://kafka.eu-west-1.amazonaws.com/?").ok_or("the host is wrong")?;
    let mut parts: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let signature = parts.remove("X-Amz-Signature").ok_or("no signature")?;
    parts.remove("User-Agent");
    let want = [
        ("Action", "kafka-cluster%3AConnect"),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Expires", "900"),
        ("X-Amz-Security-Token", "of%2Fthe%3Dday"),
        ("X-Amz-SignedHeaders", "host"),
    ];
    if let Some((name, _)) = want.iter().find(|(name, value)| parts.get(name) != Some(value)) {
        return Err(format!("{name} is wrong"));
    }
    let at = parts.get("X-Amz-Date").ok_or("no date")?;
    let scope = format!("{}/eu-west-1/kafka-cluster/aws4_request", &at[..8]);
    if parts.get("X-Amz-Credential") != Some(&format!("AKID/{scope}").replace('/', "%2F").as_str()) {
        return Err("the credential is wrong".to_owned());
    }
    let hash = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    let query: Vec<String> = parts.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let request = format!("GET\n/\n{}\nhost:kafka.eu-west-1.amazonaws.com\n\nhost\n{}", query.join("&"), hash(""));
    let signed = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hash(&request));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/').chain([signed.as_str()]) {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    if hex(&key) == signature { Ok(()) } else { Err("the signature is wrong".to_owned()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_token_of_aws_lets_in_and_one_of_a_wrong_secret_does_not() {
    let port = free_port();
    let Some(kafka) = KafkaOptions::new().advertise(port).start() else { return };
    let front = Front::start(port, kafka.port()).await;
    let address = format!("127.0.0.1:{port}");
    let settings = |secret| {
        [
            ("brokers", address.as_str()),
            ("authType", "awsiam"),
            ("awsRegion", "eu-west-1"),
            ("awsAccessKey", "AKID"),
            ("awsSecretKey", secret),
            ("awsSessionToken", "of/the=day"),
            ("disableTls", "true"),
        ]
    };
    let e = pubsub("app", &settings("hunter3")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
    assert!(e.message().contains("the signature is wrong") && !e.message().contains("hunter"), "{e}");

    let broker = pubsub("app", &settings(SECRET)).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, "t", inbox.clone());
    attached(&inbox, 1).await;
    publish(&*broker, "t", "signed").await.unwrap();
    until("it is delivered", async || inbox.texts() == ["signed"]).await;
    running.stop().await;
    assert!(front.tokens.lock().len() > 2, "each connection logs in");
}
