{{- define "dgemma.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "dgemma.fullname" -}}
{{- $name := include "dgemma.name" . -}}
{{ ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* (list CONTEXT COMPONENT): what selectors use. It never changes on an upgrade. */}}
{{- define "dgemma.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "dgemma.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* (list CONTEXT COMPONENT): labels of an object. */}}
{{- define "dgemma.labels" -}}
{{- $ := index . 0 -}}
{{ include "dgemma.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "dgemma.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end -}}
{{- end }}

{{- define "dgemma.replicas" -}}
{{- if .Values.suspended }}0{{ else if kindIs "invalid" .Values.replicas }}1{{ else }}{{ int .Values.replicas }}{{ end }}
{{- end }}

{{/* The most pods there can be at a time, but for those of a surge. */}}
{{- define "dgemma.mostReplicas" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}{{ else }}{{ default 1 .Values.replicas }}{{ end }}
{{- end }}

{{- define "dgemma.claimName" -}}
{{- if eq .Values.store.mode "existingClaim" }}{{ .Values.store.claim }}{{ else }}{{ include "dgemma.fullname" . }}-store{{ end }}
{{- end }}

{{- define "dgemma.tenantsSecret" -}}
{{ default (printf "%s-tenants" (include "dgemma.fullname" .)) .Values.tenancy.existingSecret }}
{{- end }}

{{- define "dgemma.scheme" -}}
{{ ternary "http" "https" (eq .Values.tls.mode "disabled") }}
{{- end }}

{{/* Seconds that the engine's building may take, in the pod or, where nobody else does it, at the start. */}}
{{- define "dgemma.startSeconds" -}}
{{- $minutes := .Values.platform.minutes -}}
{{ mul 60 (ternary (add $minutes.start $minutes.engine) $minutes.start (eq .Values.engine.build "none")) }}
{{- end }}

{{/* preStop, DGEMMA_DRAIN_DELAY_S, DGEMMA_DRAIN_TIMEOUT_S, 15 s for processes to end, and 5 s to spare. */}}
{{- define "dgemma.graceSeconds" -}}
{{ add .Values.serving.preStopSeconds 1 .Values.serving.drainSeconds 15 5 }}
{{- end }}

{{- define "dgemma.serverName" -}}
{{ include "dgemma.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}
