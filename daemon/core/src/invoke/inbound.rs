//! Calls from peers to the own app.

use std::net::IpAddr;

use http::header::CONTENT_LENGTH;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;

use super::call::{
    Call, GrpcAnswer, Head, Invocation, Origin, PeerIdentity, Question, TransportError, Verb, grpc_code,
};
use super::headers::{self, CALLER_APP_ID, CALLER_NAMESPACE};
use super::{Exact, Invoke, Method};
use crate::app::{AppError, AppProtocol, Body};

/// Who a call comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// What the connection proves; `None` without mTLS.
    pub identity: Option<&'a PeerIdentity>,
    /// Network address.
    pub from: Option<IpAddr>,
}

impl Invoke {
    /// Hands a peer's call to the own app. Errors of the app itself are answers.
    ///
    /// # Errors
    /// The gRPC status the peer gets.
    pub async fn inbound(&self, caller: Caller<'_>, call: Call) -> Result<Response<Body>, TransportError> {
        let Some(app) = &self.app else {
            return Err(TransportError::unsent(grpc_code::INTERNAL, "app channel is not initialized"));
        };
        let Call { mut head, body } = call;
        if let Some(wanted) = head.headers.get(headers::DESTINATION_APP_ID)
            && wanted.as_bytes() != self.identity().app_id.as_bytes()
        {
            // An address outlives the app that had it: the caller has to look again.
            let text = format!("this address belongs to app {}", self.identity().app_id);
            return Err(TransportError::unsent(grpc_code::UNAVAILABLE, text));
        }
        if let Some(identity) = caller.identity {
            // A claim of the caller does not count beside what its certificate proves.
            prove_caller(&mut head.headers, &identity.app_id, &identity.namespace);
        }
        let protocol = app.protocol();
        self.admit(caller, &head, protocol)?;
        let claimed = head.headers.get(CALLER_APP_ID).and_then(|v| v.to_str().ok()).unwrap_or("unknown").to_owned();
        self.metrics.invocation_request_received(&claimed);
        let answer = self.deliver(head, body, protocol).await;
        let status = match &answer {
            Ok(a) => a.extensions().get::<GrpcAnswer>().map_or_else(|| i32::from(a.status().as_u16()), |g| g.code),
            Err(e) => e.code,
        };
        self.metrics.invocation_response_sent(&claimed, status);
        answer
    }

    async fn deliver(&self, head: Head, body: Body, protocol: AppProtocol) -> Result<Response<Body>, TransportError> {
        let invoke_error =
            |e: String| TransportError::new(grpc_code::INTERNAL, format!("error invoking app channel: {e}"));
        let Some(app) = &self.app else { return Err(invoke_error("app channel is not initialized".to_owned())) };
        let req = app_request(head, body, protocol).map_err(invoke_error)?;
        let mut answer = match app.invoke(req).await {
            Ok(answer) => answer,
            Err(e) => grpc_answer(e).map_err(invoke_error)?,
        };
        headers::strip_hop_by_hop(answer.headers_mut());
        answer.headers_mut().remove(headers::API_TOKEN);
        if protocol.is_grpc() {
            clean_grpc_answer(&mut answer);
        }
        Ok(answer)
    }

    /// Access control and closed routes, for what is sent and for what the app reads in it.
    fn admit(&self, caller: Caller<'_>, head: &Head, protocol: AppProtocol) -> Result<(), TransportError> {
        let denied = |text: String| TransportError::unsent(grpc_code::PERMISSION_DENIED, text);
        let http = !protocol.is_grpc();
        let read = if http { head.method.read_by_app() } else { None };
        for operation in [Some(head.method.as_str()), read.as_deref()].into_iter().flatten() {
            let verb = match &head.verb {
                Verb::Http(verb) if http => Some(verb),
                _ => None,
            };
            let question = Question { caller: caller.identity, from: caller.from, operation, verb, http };
            self.check_access(question).map_err(denied)?;
            if self.close_internal_routes && http && self.is_internal(operation) {
                return Err(denied("this route of the app is closed to other apps".to_owned()));
            }
        }
        Ok(())
    }

    fn is_internal(&self, operation: &str) -> bool {
        let key = route_key(operation);
        key == "dapr" || key.starts_with("dapr/") || self.closed.load().contains(&key)
    }
}

/// A route in the form in which routes are compared: many web frameworks ignore case and
/// slashes at the ends.
pub(super) fn route_key(route: &str) -> String {
    let path = route.split(['?', '#']).next().unwrap_or_default();
    path.trim_matches('/').to_ascii_lowercase()
}

/// The request as the app gets it: final path, query, headers and body.
pub(super) fn app_request(head: Head, body: Body, protocol: AppProtocol) -> Result<Request<Body>, String> {
    let Head { verb, method, query, mut headers, type_url, origin } = head;
    headers.remove(headers::DESTINATION_APP_ID);
    let length = headers::content_length(&headers);
    let mut path = String::with_capacity(method.as_str().len() + query.len() + 2);
    if protocol.is_grpc() {
        headers::for_grpc(&mut headers, origin == Origin::Http);
        grpc_path(&mut path, &method);
    } else {
        if !matches!(&verb, Verb::Http(v) if *v != http::Method::CONNECT) {
            return Err(verb_error(&verb).to_owned());
        }
        headers::for_http(&mut headers);
        method.write_path(&mut path).map_err(|e| e.to_string())?;
        if !query.is_empty() {
            path.push('?');
            path.push_str(&query);
        }
    }
    headers.remove(CONTENT_LENGTH);
    let uri: Uri = path.parse().map_err(|e| format!("invalid URL: {e}"))?;
    let known = http_body::Body::size_hint(&body).exact();
    let body = match length {
        // Read to its end: an HTTP client stops at the length, and drops what follows.
        Some(length) if known != Some(length) => Exact::to_the_end(body, length).boxed_unsync(),
        _ => body,
    };
    let mut req = Request::new(body);
    *req.method_mut() = match &verb {
        Verb::Http(verb) => verb.clone(),
        Verb::Missing | Verb::None => http::Method::POST,
    };
    *req.uri_mut() = uri;
    *req.headers_mut() = headers;
    if protocol.is_grpc() || origin == Origin::Grpc {
        req.extensions_mut().insert(Invocation { method, verb, query, type_url });
    }
    Ok(req)
}

/// A path that stands for the method of a gRPC app, which takes the method from [`Invocation`].
fn grpc_path(path: &mut String, method: &Method) {
    if method.write_path(path).is_err() {
        path.clear();
        path.push('/');
    }
}

/// Why an HTTP app cannot be called with this verb.
pub(super) fn verb_error(verb: &Verb) -> &'static str {
    match verb {
        Verb::Missing => "rpc error: code = InvalidArgument desc = missing HTTP extension field",
        Verb::None | Verb::Http(_) => "rpc error: code = InvalidArgument desc = invalid HTTP verb",
    }
}

/// A gRPC app's error status is its answer; every other error is one on the way, as text.
pub(super) fn grpc_answer(error: AppError) -> Result<Response<Body>, String> {
    let Some(code) = error.grpc_code else { return Err(error.to_string()) };
    let mut answer = Response::new(super::empty());
    answer.extensions_mut().insert(GrpcAnswer {
        code,
        message: error.error.message().to_owned(),
        ..GrpcAnswer::default()
    });
    Ok(answer)
}

/// Leaves of an app's metadata what the app said, and not what its transport added.
pub(super) fn clean_grpc_answer(answer: &mut Response<Body>) {
    headers::strip_grpc_status(answer.headers_mut());
    answer.headers_mut().remove(http::header::DATE);
    if let Some(grpc) = answer.extensions_mut().get_mut::<GrpcAnswer>() {
        headers::strip_grpc_status(&mut grpc.trailers);
        grpc.trailers.remove(http::header::CONTENT_TYPE);
        grpc.trailers.remove(http::header::DATE);
    }
}

/// Caller ids that are proven replace those that are claimed.
fn prove_caller(headers: &mut http::HeaderMap, app_id: &str, namespace: &str) {
    for (name, value) in [(CALLER_APP_ID, app_id), (CALLER_NAMESPACE, namespace)] {
        match http::HeaderValue::from_str(value) {
            Ok(value) => headers.insert(name, value),
            Err(_) => headers.remove(name),
        };
    }
}
