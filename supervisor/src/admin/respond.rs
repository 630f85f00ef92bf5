//! What is answered. Nothing changes by it, and the body of a request is never read.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
        HeaderValue, REFERRER_POLICY, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
    },
};
use kakehi_ctl::limits;
use tokio::{
    sync::{mpsc::Sender, oneshot, watch},
    time::timeout,
};

use super::{
    Ask, Standing,
    activity::Activity,
    bodies::{Order, Text},
    connection::Reply,
    figures::Figures,
    negotiate::Variant,
    rules::{HostError, Rules},
};

const PLAIN: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// No script, no style, nothing from elsewhere, in no frame.
const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// How long the supervisor may take to say how it is.
const PATIENCE: Duration = Duration::from_millis(limits::ADMIN_ANSWER_TIMEOUT_MS);

const INDEX: &str = "\
<!doctype html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>kakehi</title></head>
<body>
<h1>kakehi</h1>
<ul>
<li><a href=\"/metrics\">/metrics</a>: figures, as Prometheus text or OpenMetrics</li>
<li><a href=\"/healthz\">/healthz</a>: whether at least one worker serves</li>
<li><a href=\"/readyz\">/readyz</a>: whether all workers serve, and nothing is stopping</li>
</ul>
</body>
</html>
";

/// Whom a connection asks.
#[derive(Clone)]
pub(super) struct Responder {
    pub(super) rules: watch::Receiver<Arc<Rules>>,
    pub(super) asks: Sender<Ask>,
    pub(super) orders: Sender<Order>,
    pub(super) figures: Arc<Figures>,
}

/// What is said, before it is put on its way.
struct Answer {
    status: StatusCode,
    media_type: &'static str,
    content: Content,
    /// Further fields.
    fields: Vec<(hyper::header::HeaderName, &'static str)>,
}

enum Content {
    Static(&'static str),
    Owned(String),
    Shared(Arc<Text>),
}

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        match self {
            Content::Static(text) => text.as_bytes(),
            Content::Owned(text) => text.as_bytes(),
            Content::Shared(text) => text.bytes(),
        }
    }
}

impl Answer {
    fn text(status: StatusCode, text: &'static str) -> Answer {
        Answer { status, media_type: PLAIN, content: Content::Static(text), fields: Vec::new() }
    }

    fn line(status: StatusCode, text: String) -> Answer {
        Answer { content: Content::Owned(text + "\n"), ..Answer::text(status, "") }
    }

    fn with(mut self, name: hyper::header::HeaderName, value: &'static str) -> Answer {
        self.fields.push((name, value));
        self
    }
}

/// Answers a request.
pub(super) async fn respond<B: Body>(
    request: Request<B>,
    responder: &Responder,
    activity: &Arc<Activity>,
) -> Response<Reply> {
    activity.on_request();
    responder.figures.requests.count();
    let Answer { status, media_type, content, fields } = answer(&request, responder).await;
    if let Content::Shared(text) = &content {
        activity.text.store(text.number, Ordering::Relaxed);
    }
    let mut response = Response::new(Reply::new(content, Arc::clone(activity)));
    *response.status_mut() = status;
    let always = [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in always.into_iter().chain(fields) {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn answer<B: Body>(request: &Request<B>, responder: &Responder) -> Answer {
    let host = responder.rules.borrow().check_host(request);
    match host {
        Ok(()) => {}
        Err(HostError::Malformed) => {
            return Answer::text(StatusCode::BAD_REQUEST, "the request does not name one host\n");
        }
        Err(HostError::Unknown) => {
            let text = "this host is not served here: ask by an address or `localhost`, or put its name into `admin.hostnames`\n";
            return Answer::text(StatusCode::MISDIRECTED_REQUEST, text);
        }
    }
    if !request.body().is_end_stream() {
        // What comes of it is not waited for.
        let refused = Answer::text(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here\n");
        return refused.with(CONNECTION, "close");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n")
            .with(ALLOW, "GET, HEAD");
    }
    match request.uri().path() {
        "/" => Answer { media_type: HTML, ..Answer::text(StatusCode::OK, INDEX) },
        "/metrics" => metrics(Variant::wanted(request.headers()), responder).await,
        "/healthz" => match standing(responder).await {
            Some(Standing { serves: true, .. }) => Answer::text(StatusCode::OK, "ok\n"),
            Some(_) => unavailable("no worker serves"),
            None => silent(),
        },
        "/readyz" => match standing(responder).await {
            Some(Standing { lacks: None, .. }) => Answer::text(StatusCode::OK, "ok\n"),
            Some(Standing { lacks: Some(reason), .. }) => unavailable(&reason),
            None => silent(),
        },
        _ => Answer::text(StatusCode::NOT_FOUND, "there is nothing here; `/` names what there is\n"),
    }
}

fn unavailable(reason: &str) -> Answer {
    Answer::line(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
}

fn silent() -> Answer {
    unavailable("the supervisor does not answer").with(RETRY_AFTER, "1")
}

/// How the supervisor is; `None`: it does not say.
async fn standing(responder: &Responder) -> Option<Standing> {
    let asked = async {
        let (answer, answered) = oneshot::channel();
        responder.asks.send(Ask::Standing(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(PATIENCE, asked).await.ok().flatten()
}

async fn metrics(variant: Variant, responder: &Responder) -> Answer {
    let (answer, answered) = oneshot::channel();
    let text = match responder.orders.send(Order { variant, answer }).await {
        Ok(()) => answered.await.ok().flatten(),
        Err(_) => None,
    };
    let Some(text) = text else { return silent() };
    let media_type = variant.format.media_type();
    let answer = Answer { media_type, content: Content::Shared(text), ..Answer::text(StatusCode::OK, "") };
    let answer = answer.with(VARY, "Accept, Accept-Encoding");
    if variant.gzip { answer.with(CONTENT_ENCODING, "gzip") } else { answer }
}
