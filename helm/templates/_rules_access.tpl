{{/* Rules about who may ask, and by which way. */}}

{{- define "dgemma.rule.tenants" -}}
{{- if and (eq .Values.tenancy.mode "multi") (not .Values.tenancy.existingSecret) (not .Values.tenancy.tenants) -}}
tenancy: mode multi needs tenants: name a secret with a key tenants.yaml as tenancy.existingSecret, or list them as tenancy.tenants
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tenantsTwice" -}}
{{- if and .Values.tenancy.existingSecret (or .Values.tenancy.tenants .Values.tenancy.sharedPrefixes) -}}
tenancy: existingSecret {{ .Values.tenancy.existingSecret }} holds the tenants already; leave tenants and sharedPrefixes out, or existingSecret
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tenantsUnused" -}}
{{- with .Values.tenancy -}}
{{- if and (eq .mode "single") (or .existingSecret .tenants .sharedPrefixes $.Values.tests.apiKey.secret) -}}
tenancy.mode: single lets everybody in without a key, and tenants or an API key are set; use -f helm/tenancy/multi-tenant.yaml, or leave them out
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tls" -}}
{{- if ne (eq .Values.tls.mode "disabled") (empty .Values.tls.secret) -}}
tls: mode tls or mtls and tls.secret, with tls.crt, tls.key and ca.crt, go together; mode is {{ .Values.tls.mode }}, the secret {{ default "not set" .Values.tls.secret }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.mtls" -}}
{{- if ne (eq .Values.tls.mode "mtls") (not (empty .Values.tls.clientSecret)) -}}
tls.clientSecret: goes with tls.mode mtls, where Prometheus and `helm test` need a certificate too
{{- end -}}
{{- end }}

{{- define "dgemma.rule.gateway" -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
gateway.parentRefs: empty; name the Gateway that the routes belong to, as [{name: NAME, namespace: NAMESPACE}]
{{- end -}}
{{- end }}

{{- define "dgemma.rule.ingress" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
ingress.host: not set; name the host that clients ask
{{- end -}}
{{- end }}
