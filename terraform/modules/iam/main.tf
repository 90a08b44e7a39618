# The role of cloud-controller's AWS half. The policy is deploy/iam/policy.json, which a test keeps
# equal to the calls that the code makes.

locals {
  uses_oidc   = var.oidc_provider_arn != null
  oidc_issuer = local.uses_oidc ? replace(var.oidc_provider_arn, "/^.*:oidc-provider\\//", "") : ""
}

data "aws_iam_policy_document" "trust" {
  dynamic "statement" {
    for_each = local.uses_oidc ? [var.oidc_provider_arn] : []

    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [statement.value]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:sub"
        values   = ["system:serviceaccount:${var.namespace}:${var.service_account}"]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = local.uses_oidc ? [] : ["pods.eks.amazonaws.com"]

    content {
      actions = ["sts:AssumeRole", "sts:TagSession"]

      principals {
        type        = "Service"
        identifiers = [statement.value]
      }
    }
  }
}

resource "aws_iam_policy" "this" {
  name        = var.name
  description = "What Fairlead's cloud-controller calls in EC2 and Elastic Load Balancing."
  policy      = file("${path.module}/../../../deploy/iam/policy.json")
  tags        = var.tags
}

resource "aws_iam_role" "this" {
  name                 = var.name
  description          = "Fairlead cloud-controller, ${var.namespace}/${var.service_account}"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags
}

resource "aws_iam_role_policy_attachment" "this" {
  role       = aws_iam_role.this.name
  policy_arn = aws_iam_policy.this.arn
}
