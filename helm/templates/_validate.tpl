{{/* What the schema cannot say, or not as helpfully. Each rule is a template that says what is wrong and
     what to do, or nothing; they are in _rules_*.tpl, and every one of
     them is in the list below. */}}
{{- define "dgemma.validate" -}}
{{- $wrong := list -}}
{{- range list
  "image" "platform" "precision" "slots" "context" "stuck" "gpu" "replicas" "autoscaling" "autoscalingRange" "spread"
  "job" "jobStore" "readOnlyStore" "claim" "hostPath" "airGapped" "checkpoint" "filled" "revision"
  "memory" "tenants" "tenantsTwice" "tenantsUnused" "tls" "mtls" "gateway" "ingress"
  "baselinePlatform" "latest" "extraEnv" "extraVolumes" "podLabels" -}}
{{- with include (printf "dgemma.rule.%s" .) $ -}}
{{- $wrong = append $wrong . -}}
{{- end -}}
{{- end -}}
{{- with $wrong -}}
{{- fail (printf "\n\n- %s\n" (join "\n- " .)) -}}
{{- end -}}
{{- end }}
