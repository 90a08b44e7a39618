//! The IAM policy allows what the code calls, no more and no less, and the Terraform module hands
//! out that policy.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cloud_controller::aws::operation::Operation;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn policy() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join("deploy/iam/policy.json")).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        other => panic!("{other} is neither a string nor a list"),
    }
}

#[test]
fn the_policy_allows_exactly_what_the_code_calls() {
    let calls: BTreeSet<String> = Operation::ALL
        .iter()
        .flat_map(|op| {
            op.dependent_actions().iter().map(|action| (*action).to_owned()).chain([op.iam_action()])
        })
        .collect();
    let policy = policy();
    let statements = policy["Statement"].as_array().unwrap();
    let allowed: BTreeSet<String> = statements.iter().flat_map(|s| strings(&s["Action"])).collect();
    let missing: Vec<&String> = calls.difference(&allowed).collect();
    let surplus: Vec<&String> = allowed.difference(&calls).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:?}, surplus {surplus:?}");
    assert!(statements.iter().all(|s| s["Effect"] == "Allow"));
}

#[test]
fn what_the_policy_lets_be_changed_on_any_resource_carries_our_tag() {
    // A listener is reached through its load balancer; rules of the nodes' groups are not ours.
    let elsewhere = ["CreateSecurityGroup", "RulesOfOurGroupsAndOfTheNodes", "FirstLoadBalancerOfTheAccount"];
    for statement in policy()["Statement"].as_array().unwrap() {
        let sid = statement["Sid"].as_str().unwrap();
        let actions = strings(&statement["Action"]);
        let reads = actions.iter().all(|a| a.contains(":Describe"));
        if reads || elsewhere.contains(&sid) || statement["Resource"] != "*" {
            continue;
        }
        let condition = statement["Condition"].to_string();
        assert!(condition.contains("Tag/elbv2.k8s.aws/cluster"), "{sid} is not bound to our tag");
    }
}

/// Whoever can tag anything can change everything that the tag guards.
#[test]
fn a_tag_can_be_put_on_nothing_that_the_policy_guards_by_tags() {
    for statement in policy()["Statement"].as_array().unwrap() {
        let sid = statement["Sid"].as_str().unwrap();
        let tags = |a: &String| {
            matches!(
                &**a,
                "elasticloadbalancing:AddTags" | "elasticloadbalancing:RemoveTags" | "ec2:CreateTags"
            )
        };
        let free = statement["Condition"].is_null() && strings(&statement["Action"]).iter().any(tags);
        let listeners = strings(&statement["Resource"]).iter().all(|r| r.contains(":listener/net/"));
        assert!(!free || listeners, "{sid} allows tags on {}", statement["Resource"]);
    }
}

/// The files that are compiled in are those that the table of operations is about.
#[test]
fn the_table_of_operations_names_every_call_of_the_sdk() {
    let calls = fs::read_to_string(root().join("cloud-controller/src/aws/sdk/calls.rs")).unwrap();
    for operation in Operation::ALL {
        let (name, method) = (format!("Operation::{operation},"), snake(&operation.to_string()));
        assert!(calls.contains(&name), "{operation} is in the table and never called");
        assert!(calls.contains(&format!(".{method}()")), "{operation} is not called by its name");
    }
    // Every request is sent through `call`, which names an operation.
    assert_eq!(calls.matches(".send()").count(), calls.matches("self.call(Operation::").count());
}

#[test]
fn the_terraform_module_parses_and_uses_the_policy() {
    let module = root().join("terraform/modules/iam");
    let mut files: Vec<PathBuf> = fs::read_dir(&module).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "tf"));
    let mut blocks = BTreeSet::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let body = hcl::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for block in body.blocks() {
            let labels: Vec<&str> = block.labels().iter().map(hcl::BlockLabel::as_str).collect();
            blocks.insert(format!("{} {}", block.identifier(), labels.join(" ")));
            if labels.first() == Some(&"aws_iam_policy") {
                let policy = block.body().attributes().find(|a| a.key() == "policy").unwrap();
                let expression = hcl::format::to_string(policy.expr()).unwrap();
                let path =
                    expression.split("${path.module}/").nth(1).and_then(|t| t.split('"').next()).unwrap();
                let used: Value =
                    serde_json::from_str(&fs::read_to_string(module.join(path)).unwrap()).unwrap();
                assert_eq!(used, self::policy());
            }
        }
    }
    for block in [
        "resource aws_iam_policy this",
        "resource aws_iam_role this",
        "resource aws_iam_role_policy_attachment this",
        "variable oidc_provider_arn",
        "output role_arn",
    ] {
        assert!(blocks.contains(block), "{block} is not in {blocks:?}");
    }
}

/// `DescribeTags` is `describe_tags`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
