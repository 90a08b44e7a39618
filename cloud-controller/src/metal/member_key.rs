//! The key by which the hosts trust one another, kept in a Secret so that it outlives leaders.

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use metal_lb_api::MemberKey;

use super::tls::random_key;
use crate::marks::{MarkError, answer};

/// In the leader-election namespace.
pub const SECRET_NAME: &str = "fairlead-metal-member-key";
const DATA_KEY: &str = "member-key";

/// Reads the key, or creates it.
///
/// # Errors
/// When the Secret cannot be read or created, or holds something else.
pub async fn member_key(client: Client, namespace: &str) -> anyhow::Result<MemberKey> {
    let api = Api::<Secret>::namespaced(client, namespace);
    let found = answer(api.get_opt(SECRET_NAME)).await.context("reading the Secret of the member key")?;
    if let Some(secret) = found {
        return parse(&secret);
    }
    match answer(api.create(&PostParams::default(), &secret_of(random_key()?))).await {
        Ok(secret) => parse(&secret),
        // Another replica was faster.
        Err(MarkError::Conflict) => parse(&answer(api.get(SECRET_NAME)).await?),
        Err(error) => Err(error).context("creating the Secret of the member key"),
    }
}

fn secret_of(key: [u8; 32]) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(SECRET_NAME.to_owned()), ..ObjectMeta::default() },
        data: Some([(DATA_KEY.to_owned(), ByteString(key.to_vec()))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn parse(secret: &Secret) -> anyhow::Result<MemberKey> {
    let data = secret.data.as_ref().and_then(|d| d.get(DATA_KEY));
    let bytes: [u8; 32] = data.and_then(|d| d.0.as_slice().try_into().ok()).with_context(|| {
        format!("Secret {SECRET_NAME} holds no {DATA_KEY} of 32 bytes: delete it, and a new one is made")
    })?;
    Ok(MemberKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_anything_else_is_refused() {
        assert_eq!(parse(&secret_of([7; 32])).unwrap(), MemberKey::new([7; 32]));
        let mut wrong = secret_of([7; 32]);
        wrong.data = Some([(DATA_KEY.to_owned(), ByteString(vec![1, 2]))].into());
        assert!(parse(&wrong).unwrap_err().to_string().contains(SECRET_NAME));
    }
}
