//! The HTTP endpoint that Prometheus scrapes, as a Pingora HTTP application.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Response, StatusCode, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;

use super::metrics::Metrics;

/// For a scraper that asks for it, as Prometheus does.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// For every other one.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers `GET <path>` with the metrics and everything else with 404.
pub struct MetricsEndpoint {
    /// What to serve.
    pub metrics: Arc<Metrics>,
    /// The path, `/apisix/prometheus/metrics` unless configured otherwise.
    pub path: String,
}

#[async_trait]
impl ServeHttp for MetricsEndpoint {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let found = session.req_header().uri.path() == self.path;
        let accepted = session.req_header().headers.get_all(header::ACCEPT).iter();
        let openmetrics = accepted
            .filter_map(|accepted| accepted.to_str().ok())
            .any(|accepted| accepted.contains("application/openmetrics-text"));
        let (status, kind, body) = match (found, openmetrics) {
            (true, true) => (StatusCode::OK, OPENMETRICS, self.metrics.encode()),
            (true, false) => (StatusCode::OK, PLAIN, self.metrics.encode_plain()),
            (false, _) => {
                let told = format!("metrics are at {}\n", self.path);
                (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", told)
            }
        };
        let mut response = Response::new(body.into_bytes());
        *response.status_mut() = status;
        let length = response.body().len().into();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length);
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }
}
