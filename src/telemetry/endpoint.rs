//! The HTTP endpoint that Prometheus scrapes, as a Pingora HTTP application.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Response, StatusCode, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;

use super::metrics::Metrics;

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
        let (status, body) = match found {
            true => (StatusCode::OK, self.metrics.encode()),
            false => (
                StatusCode::NOT_FOUND,
                format!("metrics are at {}\n", self.path),
            ),
        };
        let mut response = Response::new(body.into_bytes());
        *response.status_mut() = status;
        let length = response.body().len().into();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length);
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
        );
        response
    }
}
