//! Errors in the form OpenAI clients know.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An error as it is sent: a status, and `{"error":{message,type,code,param}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    retry_after_s: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            code,
            param: None,
            retry_after_s: None,
        }
    }

    /// 400: the body or a parameter is wrong.
    pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// 400: parameter `param` has a value that is not allowed.
    pub(super) fn invalid_value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).with_param(param)
    }

    /// 400: parameter `param` asks for something that is not built.
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_parameter", message).with_param(param)
    }

    /// 401: no key, or none we know.
    pub(super) fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            code,
            message,
        )
    }

    /// 402: the account cannot pay.
    pub(super) fn insufficient_balance(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PAYMENT_REQUIRED,
            "insufficient_quota",
            "insufficient_balance",
            message,
        )
    }

    /// 404: there is no such thing.
    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, code, message)
    }

    /// 405: the path exists, the method does not.
    pub(super) fn method_not_allowed() -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(
            status,
            INVALID,
            "method_not_allowed",
            "this path does not take this method",
        )
    }

    /// 408: the body did not come.
    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "timeout", message)
    }

    /// 409: the request contradicts an earlier one.
    pub(super) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, INVALID, code, message)
    }

    /// 413: the body is too large.
    pub(super) fn too_large(size_bytes_max: usize) -> Self {
        let message = format!("the body has more than {size_bytes_max} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            "body_too_large",
            message,
        )
    }

    /// An adapter that cannot be loaded or unloaded, under vLLM's types of errors.
    pub(super) fn adapter(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(status, kind, code, message)
    }

    /// 403: the key is not good for this.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "permission_error",
            "insufficient_scope",
            message,
        )
    }

    /// 429: a limit of the key for a minute.
    pub(super) fn rate_limited(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self {
            code: "rate_limit_exceeded",
            ..Self::overloaded(message, retry_after_s)
        }
    }

    /// 429: a budget of the key is used up.
    pub(super) fn quota(message: impl Into<String>, retry_after_s: Option<u32>) -> Self {
        Self {
            kind: "insufficient_quota",
            code: "insufficient_quota",
            retry_after_s,
            ..Self::overloaded(message, 0)
        }
    }

    /// 429: come back later.
    pub(super) fn overloaded(message: impl Into<String>, retry_after_s: u32) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let error = Self::new(status, "rate_limit_error", "overloaded", message);
        Self {
            retry_after_s: Some(retry_after_s),
            ..error
        }
    }

    /// 500: our fault; the cause is logged, not sent.
    pub(super) fn internal() -> Self {
        let message = "the server could not finish this request; nothing was charged";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "internal_error",
            message,
        )
    }

    /// 503: not ready, or stopping.
    pub(super) fn unavailable(message: impl Into<String>, retry_after_s: u32) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let error = Self::new(status, "server_error", "unavailable", message);
        Self {
            retry_after_s: Some(retry_after_s),
            ..error
        }
    }

    /// Names the parameter that is to blame.
    pub(super) fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The JSON body.
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self.body()).expect("plain data has a JSON form")
    }

    fn body(&self) -> Body<'_> {
        let Self {
            message,
            kind,
            code,
            param,
            ..
        } = self;
        Body {
            error: Detail {
                message,
                kind,
                code,
                param: param.as_deref(),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(retry_after_s) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
