variable "name" {
  description = "Name of the role and of its policy."
  type        = string
  default     = "fairlead-cloud-controller"
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's OIDC provider (IAM roles for service accounts). Null for EKS Pod Identity."
  type        = string
  default     = null
}

variable "namespace" {
  description = "Namespace that cloud-controller runs in."
  type        = string
  default     = "fairlead-system"
}

variable "service_account" {
  description = "ServiceAccount that cloud-controller runs as."
  type        = string
  default     = "cloud-controller"
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the role, where the organisation requires one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the role and the policy."
  type        = map(string)
  default     = {}
}
