//! Which Services are ours, and by whom they are served.
//!
//! `spec.loadBalancerClass` chooses; without one the AWS annotation route and then
//! `--default-class` do. A foreign class is never touched, not even with an Event. A class under
//! our own names that nothing serves gets an Event, because nobody else will ever say why the
//! Service stays pending.

use std::collections::BTreeSet;
use std::fmt;

use service_model::{Service, ServiceType};

use crate::plan::Note;

/// Who can serve a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    Aws,
    Metal,
}

/// The classes in force: which providers run, and what a Service without a class gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes {
    pub enabled: BTreeSet<Provider>,
    /// `--default-class`; one of those enabled.
    pub default: Option<Provider>,
}

/// What is to be done for one Service, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub serve: Option<Provider>,
    /// Providers whose finalizer the Service carries although they (no longer) serve it.
    pub release: BTreeSet<Provider>,
    pub notes: Vec<Note>,
}

/// The annotations by which AWS Load Balancer Controller takes a Service without a class.
const AWS_TYPE: &str = "service.beta.kubernetes.io/aws-load-balancer-type";
const AWS_TARGET_TYPE: &str = "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type";

/// The prefixes of classes that only this controller answers for.
const OUR_PREFIXES: [&str; 2] = ["fairlead.dev/", "service.k8s.aws/"];

impl Classes {
    /// Total and pure: the same Service and flags always give the same verdict.
    pub fn judge(&self, service: &Service) -> Verdict {
        let mut verdict = Verdict::default();
        if !service.deleting && service.service_type == ServiceType::LoadBalancer {
            match self.claim(service) {
                Claim::By(provider) => verdict.serve = Some(provider),
                Claim::Nobody => {}
                Claim::Unserved(note) => verdict.notes.push(note),
            }
        }
        for provider in Provider::ALL {
            if verdict.serve == Some(provider) || !service.has_finalizer(provider.finalizer()) {
                continue;
            }
            match (self.enabled.contains(&provider), provider) {
                (true, _) => _ = verdict.release.insert(provider),
                (false, Provider::Metal) => verdict.notes.push(Note::warning(
                    "CleanUpImpossible",
                    format!(
                        "the Service carries the finalizer {}, but this controller runs without \
                         --metal-endpoint: give it the hosts, so that the address can be taken back",
                        Provider::Metal.finalizer()
                    ),
                )),
                // With AWS off, the finalizer may well be another controller's.
                (false, Provider::Aws) => {}
            }
        }
        verdict
    }

    fn claim(&self, service: &Service) -> Claim {
        match service.load_balancer_class.as_deref() {
            Some(class) => self.claim_by_class(class),
            None if asks_for_nlb(service) && self.enabled.contains(&Provider::Aws) => {
                Claim::By(Provider::Aws)
            }
            None if asks_for_nlb(service) => Claim::Nobody,
            None => self.default.map_or(Claim::Nobody, Claim::By),
        }
    }

    fn claim_by_class(&self, class: &str) -> Claim {
        match Provider::of_class(class) {
            Some(provider) if self.enabled.contains(&provider) => Claim::By(provider),
            // The class is also AWS Load Balancer Controller's: with no provider of ours that
            // could ever serve it, silence would leave the user without any reason.
            Some(provider) => {
                Claim::Unserved(self.unserved(class, &format!(" ({})", provider.how_to_enable())))
            }
            None if OUR_PREFIXES.iter().any(|p| class.starts_with(p)) => {
                Claim::Unserved(self.unserved(class, ""))
            }
            None => Claim::Nobody,
        }
    }

    fn unserved(&self, class: &str, hint: &str) -> Note {
        let served: Vec<&str> = self.enabled.iter().map(|p| p.class()).collect();
        let served = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
        Note::warning(
            "UnknownLoadBalancerClass",
            format!(
                "nothing serves spec.loadBalancerClass {class:?}{hint}; served here: {served}. The class of a \
                 Service cannot be changed: create it again with one of these"
            ),
        )
    }
}

enum Claim {
    By(Provider),
    /// Somebody else's, or nobody's: none of our business.
    Nobody,
    Unserved(Note),
}

/// `nlb-ip`, or `external` together with a target type (AWS Load Balancer Controller v2.2 and later).
fn asks_for_nlb(service: &Service) -> bool {
    match service.annotation(AWS_TYPE) {
        Some("nlb-ip") => true,
        Some("external") => matches!(service.annotation(AWS_TARGET_TYPE), Some("ip" | "instance")),
        _ => false,
    }
}

impl Provider {
    pub const ALL: [Self; 2] = [Self::Aws, Self::Metal];

    /// The `spec.loadBalancerClass` that it serves.
    pub fn class(self) -> &'static str {
        match self {
            Self::Aws => "service.k8s.aws/nlb",
            Self::Metal => "fairlead.dev/metal",
        }
    }

    pub fn of_class(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.class() == class)
    }

    /// What keeps a Service from vanishing before its load balancer is gone.
    pub fn finalizer(self) -> &'static str {
        match self {
            Self::Aws => "service.k8s.aws/resources",
            Self::Metal => "fairlead.dev/metal",
        }
    }

    pub(crate) fn how_to_enable(self) -> &'static str {
        match self {
            Self::Aws => "AWS is off: the controller runs without --aws-region",
            Self::Metal => "metal is off: the controller runs without --metal-endpoint",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aws => "aws",
            Self::Metal => "metal",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::ObjectName;

    fn load_balancer(class: Option<&str>) -> Service {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_class = class.map(Into::into);
        service
    }

    fn classes(enabled: &[Provider], default: Option<Provider>) -> Classes {
        Classes { enabled: enabled.iter().copied().collect(), default }
    }

    #[test]
    fn the_class_chooses_the_provider() {
        use Provider::{Aws, Metal};
        let both = &[Aws, Metal][..];
        // class, enabled, default, who serves, whether the user is told something
        type Row<'a> = (Option<&'a str>, &'a [Provider], Option<Provider>, Option<Provider>, bool);
        let table: &[Row<'_>] = &[
            (Some("fairlead.dev/metal"), both, None, Some(Metal), false),
            (Some("service.k8s.aws/nlb"), both, None, Some(Aws), false),
            (Some("service.k8s.aws/nlb"), both, Some(Metal), Some(Aws), false),
            (None, both, None, None, false),
            (None, both, Some(Metal), Some(Metal), false),
            (Some("io.cilium/l2-announcer"), both, Some(Metal), None, false),
            (Some("metallb"), both, Some(Metal), None, false),
            (Some("fairlead.dev/metall"), both, Some(Metal), None, true),
            (Some("service.k8s.aws/nlbb"), both, None, None, true),
            (Some("service.k8s.aws/nlb"), &[Metal], None, None, true),
            (Some("fairlead.dev/metal"), &[Aws], None, None, true),
        ];
        for (class, enabled, default, serve, told) in table {
            let verdict = classes(enabled, *default).judge(&load_balancer(*class));
            assert_eq!((verdict.serve, !verdict.notes.is_empty()), (*serve, *told), "class {class:?}");
            assert!(verdict.release.is_empty());
        }
    }

    #[test]
    fn a_class_that_nothing_serves_is_named_together_with_what_is_allowed() {
        let verdict = classes(&[Provider::Metal], None).judge(&load_balancer(Some("service.k8s.aws/nlb")));
        let text = verdict.notes[0].to_string();
        assert!(
            text.contains("service.k8s.aws/nlb")
                && text.contains("--aws-region")
                && text.contains("fairlead.dev/metal"),
            "{text}"
        );
    }

    #[test]
    fn the_aws_annotations_choose_aws_when_no_class_is_set() {
        let table: &[(&str, Option<&str>, bool)] = &[
            ("nlb-ip", None, true),
            ("external", Some("instance"), true),
            ("external", Some("ip"), true),
            ("external", None, false),
            ("external", Some("pod"), false),
            ("nlb", None, false),
        ];
        for (kind, target, aws) in table {
            let mut service = load_balancer(None);
            service.annotations.insert(AWS_TYPE.into(), (*kind).into());
            if let Some(target) = target {
                service.annotations.insert(AWS_TARGET_TYPE.into(), (*target).into());
            }
            let verdict = classes(&[Provider::Aws], None).judge(&service);
            assert_eq!(verdict.serve == Some(Provider::Aws), *aws, "{kind} {target:?}");
            assert_eq!(classes(&[Provider::Metal], None).judge(&service), Verdict::default());
        }
    }

    #[test]
    fn a_class_overrides_the_annotations() {
        let mut service = load_balancer(Some("example.com/other"));
        service.annotations.insert(AWS_TYPE.into(), "nlb-ip".into());
        assert_eq!(classes(&[Provider::Aws], None).judge(&service), Verdict::default());
    }

    #[test]
    fn a_service_that_is_no_longer_ours_is_released_by_its_finalizer() {
        type Edit = fn(&mut Service);
        let table: &[Edit] = &[
            |s| s.service_type = ServiceType::ClusterIp,
            |s| s.deleting = true,
            |s| s.load_balancer_class = Some("example.com/other".into()),
        ];
        for edit in table {
            let mut service = load_balancer(Some("fairlead.dev/metal"));
            service.finalizers.push(Provider::Metal.finalizer().into());
            edit(&mut service);
            let verdict = classes(&Provider::ALL, None).judge(&service);
            assert_eq!(verdict.serve, None);
            assert_eq!(verdict.release, BTreeSet::from([Provider::Metal]));
        }
    }

    #[test]
    fn a_service_without_our_finalizer_has_nothing_to_release() {
        let mut service = load_balancer(Some("fairlead.dev/metal"));
        service.deleting = true;
        assert_eq!(classes(&Provider::ALL, None).judge(&service), Verdict::default());
    }

    #[test]
    fn a_finalizer_of_a_provider_that_is_off_is_left_alone() {
        let mut service = load_balancer(None);
        service.deleting = true;
        service.finalizers.push(Provider::Aws.finalizer().into());
        assert_eq!(classes(&[Provider::Metal], None).judge(&service), Verdict::default());
        service.finalizers.push(Provider::Metal.finalizer().into());
        let verdict = classes(&[Provider::Aws], None).judge(&service);
        assert_eq!(verdict.release, BTreeSet::from([Provider::Aws]));
        assert_eq!(verdict.notes[0].reason, "CleanUpImpossible");
    }
}
