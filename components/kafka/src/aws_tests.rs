use std::collections::HashMap;
use std::io::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn read(pairs: &[(&str, &str)], env: &[(&str, &str)]) -> std::result::Result<Aws, ConfigErrors> {
    let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut errors = ConfigErrors::new();
    let aws = Aws::read(&pairs.iter().copied().collect(), &mut errors, |name| env.get(name).cloned());
    errors.finish(aws).map(|aws| aws.expect("no error was told"))
}

/// The parts of the URL that a token is.
fn opened(token: &Token) -> HashMap<String, String> {
    let url = URL_SAFE_NO_PAD.decode(token.text.expose()).unwrap();
    let url = String::from_utf8(url).unwrap();
    let query = url.strip_prefix("https://kafka.eu-west-1.amazonaws.com/?").unwrap_or_else(|| panic!("{url}"));
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (plain(k), plain(v))).collect()
}

const KEYS: [(&str, &str); 3] = [("awsRegion", "eu-west-1"), ("awsAccessKey", "AKID"), ("awsSecretKey", "hunter2")];

#[tokio::test]
async fn a_token_is_a_presigned_url_that_ends_in_15_minutes() {
    let token = read(&KEYS, &[]).unwrap().fetch().await.unwrap();
    let parts = opened(&token);
    assert_eq!(parts["Action"], "kafka-cluster:Connect");
    assert_eq!(parts["X-Amz-Expires"], "900");
    assert!(parts["X-Amz-Credential"].starts_with("AKID/"), "{parts:?}");
    assert!(parts["X-Amz-Credential"].ends_with("/eu-west-1/kafka-cluster/aws4_request"), "{parts:?}");
    assert!(parts["User-Agent"].starts_with("mechad/"));
    assert!(!parts.contains_key("X-Amz-Security-Token"));
    assert_eq!(token.ends.duration_since(token.fetched).unwrap(), Duration::from_secs(900));
}

#[tokio::test]
async fn the_document_goes_before_the_environment() {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_SESSION_TOKEN", "t"),
        ("AWS_REGION", "no"),
    ];
    let parts = opened(&read(&KEYS, &variables).unwrap().fetch().await.unwrap());
    assert!(parts["X-Amz-Credential"].starts_with("AKID/"), "{parts:?}");
    let parts = opened(&read(&KEYS[..1], &variables).unwrap().fetch().await.unwrap());
    assert!(parts["X-Amz-Credential"].starts_with("ENV/"), "{parts:?}");
    assert_eq!(parts["X-Amz-Security-Token"], "t");
    // The names that newer documents use.
    let newer = [("region", "eu-west-1"), ("accessKey", "NEW"), ("secretKey", "x"), ("sessionToken", "s")];
    let parts = opened(&read(&newer, &variables).unwrap().fetch().await.unwrap());
    assert!(parts["X-Amz-Credential"].starts_with("NEW/") && parts["X-Amz-Security-Token"] == "s", "{parts:?}");
}

#[test]
fn what_is_missing_is_named_and_no_secret() {
    let told = |pairs: &[(&str, &str)]| read(pairs, &[]).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(told(&KEYS[1..]).contains("awsRegion"));
    assert!(told(&[("awsRegion", "eu/west")]).contains("awsRegion"));
    assert!(told(&KEYS[..1]).contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
    let half = told(&[KEYS[0], KEYS[2]]);
    assert!(half.contains("awsAccessKey") && !half.contains("hunter2"), "{half}");
}

/// A token service that answers one request, and what it was asked.
async fn service(status: &str, body: String) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        text
    });
    (url, asked)
}

fn lent(ends: &str) -> String {
    format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>LENT</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
         <SessionToken>lent/token==</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
}

#[tokio::test]
async fn a_role_is_taken_and_the_token_ends_with_it() {
    let ends = (Timestamp::now() + jiff::SignedDuration::from_secs(60)).to_string();
    let (sts, asked) = service("200 OK", lent(&ends)).await;
    let pairs = [&KEYS[..], &[("awsIamRoleArn", "arn:aws:iam::1:role/r"), ("awsStsSessionName", "me")]].concat();
    let token = read(&pairs, &[("AWS_ENDPOINT_URL_STS", &sts)]).unwrap().fetch().await.unwrap();
    let parts = opened(&token);
    assert!(parts["X-Amz-Credential"].starts_with("LENT/"), "{parts:?}");
    assert_eq!(parts["X-Amz-Security-Token"], "lent/token==");
    assert!(token.ends.duration_since(token.fetched).unwrap() <= Duration::from_secs(60));
    let asked = asked.await.unwrap();
    for part in ["Action=AssumeRole&", "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr", "RoleSessionName=me", "AKID%2F"] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
    assert!(!asked.contains("hunter2"));
}

#[tokio::test]
async fn a_web_identity_is_read_from_its_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "identity.of.pod").unwrap();
    let (sts, asked) = service("200 OK", lent("2999-01-01T00:00:00Z")).await;
    let env = [
        ("AWS_ENDPOINT_URL_STS", sts.as_str()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.path().to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:r"),
    ];
    let token = read(&KEYS[..1], &env).unwrap().fetch().await.unwrap();
    assert!(opened(&token)["X-Amz-Credential"].starts_with("LENT/"));
    let asked = asked.await.unwrap();
    assert!(asked.contains("WebIdentityToken=identity.of.pod ") && asked.contains("RoleArn=arn%3Ar"), "{asked}");
}

#[tokio::test]
async fn a_refused_role_says_why() {
    let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>";
    let (sts, _asked) = service("403 Forbidden", body.to_owned()).await;
    let pairs = [&KEYS[..], &[("awsIamRoleArn", "arn:r")]].concat();
    let e = read(&pairs, &[("AWS_ENDPOINT_URL_STS", &sts)]).unwrap().fetch().await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Unauthenticated);
    assert!(e.message().contains("AccessDenied: not you") && !e.message().contains("hunter2"), "{e}");
}
