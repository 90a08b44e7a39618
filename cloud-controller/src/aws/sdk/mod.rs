//! AWS through its SDK.
//!
//! The SDK's own retries are off: each try is paid from the budget, and a write whose answer was
//! lost is for the caller to look into, not to repeat.

mod calls;
mod parse;

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{Provider as Tls, rustls_provider::CryptoMode};

use super::Setup;
use super::api::{ApiError, ApiResult, ErrorKind, NO_CREDENTIALS};
use super::budget::Budget;
use super::operation::Operation;

#[derive(Debug)]
pub struct Sdk {
    ec2: aws_sdk_ec2::Client,
    elb: aws_sdk_elasticloadbalancingv2::Client,
    budget: Budget,
}

const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(30);
/// How often a call that AWS refused for being one too many is made.
const TRIES: usize = 8;

impl Sdk {
    /// With credentials from where AWS's tools look for them: environment, shared files, web
    /// identity (IRSA), EKS Pod Identity, instance metadata.
    ///
    /// Nothing is asked of AWS yet: credentials that are not there show with the first call.
    pub async fn connect(setup: &Setup) -> Self {
        let mut loader = Self::base().region(Region::new(setup.region.clone()));
        if let Some(endpoint) = &setup.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        Self::from_config(&loader.load().await, Budget::default())
    }

    /// What every client has in common.
    pub fn base() -> aws_config::ConfigLoader {
        let client =
            aws_smithy_http_client::Builder::new().tls_provider(Tls::Rustls(CryptoMode::Ring)).build_https();
        aws_config::defaults(BehaviorVersion::latest())
            .http_client(client)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(CALL).build())
    }

    pub fn from_config(config: &SdkConfig, budget: Budget) -> Self {
        let ec2 = aws_sdk_ec2::Client::new(config);
        let elb = aws_sdk_elasticloadbalancingv2::Client::new(config);
        Self { ec2, elb, budget }
    }

    /// Makes the call when the budget allows it, again if AWS throttles it.
    async fn call<T, E, F>(&self, operation: Operation, send: impl Fn() -> F + Send) -> ApiResult<T>
    where
        F: Future<Output = Result<T, SdkError<E>>> + Send,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        T: Send,
    {
        let mut tries = 0;
        loop {
            self.budget.take(operation).await;
            tries += 1;
            match send().await {
                Ok(answer) => {
                    self.budget.succeeded(operation);
                    return Ok(answer);
                }
                Err(error) => {
                    let error = api_error(operation, &error);
                    if error.kind != ErrorKind::Throttled || tries == TRIES {
                        return Err(error);
                    }
                    self.budget.throttled(operation);
                }
            }
        }
    }
}

fn api_error<E>(operation: Operation, error: &SdkError<E>) -> ApiError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    if let Some((code, message)) = error.as_service_error().and_then(|e| Some((e.code()?, e.message()))) {
        return ApiError::of_code(operation, code, message.unwrap_or("no message"));
    }
    let message = chain(error);
    // The SDK has no public type for it: neither a broken connection nor a time-out.
    let dispatch = matches!(error, SdkError::DispatchFailure(e) if e.is_other());
    if dispatch && message.contains("credential") {
        return ApiError::of_code(operation, NO_CREDENTIALS, message);
    }
    ApiError { operation, kind: ErrorKind::Unknown, code: "no answer".to_owned(), message }
}

/// The error and what caused it, each on the same line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string().replace('\n', ";");
        // Many wrap without a word of their own.
        if !causes.iter().any(|cause| cause.contains(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    causes.join(": ")
}
