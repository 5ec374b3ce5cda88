//! Hostile and odd paths: what the app sees is what was judged.

use mecha_tests::{Answer, HttpApp};

use crate::support::Pair;

/// `(method as sent, target the app sees)`
const SEEN: [(&str, &str); 14] = [
    ("plain", "/plain"),
    ("a/b/c", "/a/b/c"),
    ("a//b", "/a/b"),
    ("./a", "/a"),
    ("a/./b", "/a/b"),
    ("a/../b", "/b"),
    ("a%2Fb", "/a/b"),
    ("a%20b", "/a%20b"),
    ("%C3%A9", "/%C3%A9"),
    ("a%2525b", "/a%25b"),
    ("a/..%2Fb", "/b"),
    ("..%2F..%2Fadmin", "/admin"),
    ("quote%22x", "/quote%22x"),
    ("star%2Ax", "/star*x"),
];

/// Refused; the app sees nothing.
const REFUSED: [&str; 5] = ["a%23b", "a%3Fb", "a%00b", "a%0D%0Ab", "a%7Fb"];

#[tokio::test]
async fn methods_are_normalised_once() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let pair = Pair::with(&app).await;
    for (sent, seen) in SEEN {
        app.forget();
        let reply = pair.caller.http().get(format!("/v1.0/invoke/callee/method/{sent}")).send().await;
        assert_eq!(reply.status, 200, "{sent}: {}", reply.text());
        let targets: Vec<String> = app.all_calls().into_iter().map(|call| call.target).collect();
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        assert_eq!(targets.len(), 1, "{sent}: {targets:?}");
        // A character may be written with or without an escape; `%25` stays as it is.
        assert_eq!(decoded(&targets[0]), decoded(seen), "{sent}: {targets:?}");
    }
}

#[tokio::test]
async fn reserved_characters_are_refused() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let pair = Pair::with(&app).await;
    app.forget();
    for sent in REFUSED {
        let reply = pair.caller.http().get(format!("/v1.0/invoke/callee/method/{sent}")).send().await;
        assert_eq!((reply.status, reply.code().as_str()), (500, "ERR_DIRECT_INVOKE"), "{sent}: {}", reply.text());
        assert!(reply.message().contains("invalid method"), "{sent}: {}", reply.text());
    }
    assert!(app.all_calls().is_empty(), "{:?}", app.all_calls());
    // A lone percent sign is no escape.
    let reply = pair.caller.http().get("/v1.0/invoke/callee/method/a%zzb").send().await;
    assert!(reply.status == 400 || reply.status == 500, "{reply:?}");
    assert!(app.all_calls().is_empty());
}

#[tokio::test]
async fn the_header_form_keeps_the_path_too() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let pair = Pair::with(&app).await;
    app.forget();
    let http = pair.caller.http();
    http.get("/a/b%20c?x=%20y").header("dapr-app-id", "callee").send().await.expect(200);
    assert_eq!(app.all_calls()[0].target, "/a/b%20c?x=%20y");
}

#[tokio::test]
async fn queries_are_not_touched() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let pair = Pair::with(&app).await;
    for query in ["a=1&a=2", "a=%2F%3F", "a+b", "empty", "a=&b", "x=../y", "%zz"] {
        app.forget();
        pair.caller.http().get(format!("/v1.0/invoke/callee/method/q?{query}")).send().await.expect(200);
        assert_eq!(app.all_calls()[0].target, format!("/q?{query}"));
    }
}
