output "role_arn" {
  description = "For the annotation eks.amazonaws.com/role-arn of the ServiceAccount, or for the pod identity association."
  value       = aws_iam_role.this.arn
}

output "policy_arn" {
  description = "For roles that are made elsewhere."
  value       = aws_iam_policy.this.arn
}
