{{/* Environment of the service's container: settings.md says what each variable does. */}}
{{- define "dgemma.serverEnv" -}}
{{- include "dgemma.storeEnv" . }}
{{- with .Values.model }}
{{- if and .source (not (hasPrefix "hf://" .source)) }}
- {name: DGEMMA_CHECKPOINT, value: {{ .source | quote }}}
{{- else if .revision }}
- {name: DGEMMA_CHECKPOINT, value: /opt/nim/.cache/checkpoint/{{ .revision }}}
{{- end }}
{{- if .profile }}
- {name: NIM_MODEL_PROFILE, value: {{ .profile | quote }}}
{{- else if .precision }}
- {name: DGEMMA_PREFERRED_PROFILE, value: {{ .precision }}}
{{- end }}
{{- end }}
{{- with .Values.serving }}
- {name: NIM_SERVED_MODEL_NAME, value: {{ .names | quote }}}
- {name: DGEMMA_MAX_QUEUED, value: {{ .maxQueued | int64 | quote }}}
- {name: DGEMMA_PREFIX_CACHE_MIB, value: {{ .prefixCacheMiB | int64 | quote }}}
- {name: DGEMMA_HTTP_TIMEOUT_S, value: {{ .requestSeconds | int64 | quote }}}
- {name: DGEMMA_DRAIN_DELAY_S, value: "1"}
- {name: DGEMMA_DRAIN_TIMEOUT_S, value: {{ .drainSeconds | int64 | quote }}}
- {name: DGEMMA_QUIET_AFTER_S, value: {{ .quietSeconds | quote }}}
- {name: DGEMMA_STUCK_AFTER_S, value: {{ .stuckSeconds | quote }}}
- {name: DGEMMA_GRPC_MAX_CONNECTION_AGE_S, value: {{ .maxConnectionAgeSeconds | int64 | quote }}}
{{- end }}
- {name: DGEMMA_START_TIMEOUT_S, value: {{ include "dgemma.startSeconds" . | quote }}}
{{- if eq .Values.tenancy.mode "multi" }}
- {name: DGEMMA_TENANTS, value: /etc/dgemma/tenants/tenants.yaml}
{{- end }}
{{- if .Values.tenancy.ledgerClaim }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: DGEMMA_LEDGER, value: /var/lib/dgemma/ledger/$(POD_NAME)}
{{- end }}
{{- if ne .Values.tls.mode "disabled" }}
- {name: NIM_SSL_MODE, value: {{ .Values.tls.mode }}}
- {name: NIM_SSL_CERTS_PATH, value: /etc/dgemma/tls/tls.crt}
- {name: NIM_SSL_KEY_PATH, value: /etc/dgemma/tls/tls.key}
{{- if eq .Values.tls.mode "mtls" }}
- {name: NIM_SSL_CA_CERTS_PATH, value: /etc/dgemma/tls/ca.crt}
{{- end }}
{{- end }}
{{- end }}

{{/* (list CONTEXT ENDPOINT PORT): how the kubelet asks. It has no certificate of a client, so with mtls
     it sees no more than that somebody listens; gRPC does once the model is loaded. */}}
{{- define "dgemma.probe" -}}
{{- $ := index . 0 -}}
{{- if eq $.Values.tls.mode "mtls" -}}
tcpSocket: {port: {{ index . 2 }}}
{{- else -}}
httpGet: {path: {{ index . 1 }}, port: http, scheme: {{ include "dgemma.scheme" $ | upper }}}
{{- end -}}
{{- end }}

{{- define "dgemma.serverVolumes" -}}
{{- include "dgemma.storeVolumes" . }}
{{- if eq .Values.tenancy.mode "multi" }}
- name: tenants
  secret:
    secretName: {{ include "dgemma.tenantsSecret" . }}
{{- end }}
{{- with .Values.tenancy.ledgerClaim }}
- name: ledger
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- if ne .Values.tls.mode "disabled" }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secret }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "dgemma.serverMounts" -}}
{{- include "dgemma.storeMounts" (list . .Values.store.readOnly) }}
{{- if eq .Values.tenancy.mode "multi" }}
- {name: tenants, mountPath: /etc/dgemma/tenants, readOnly: true} # no subPath: it would never be updated
{{- end }}
{{- if .Values.tenancy.ledgerClaim }}
- {name: ledger, mountPath: /var/lib/dgemma/ledger}
{{- end }}
{{- if ne .Values.tls.mode "disabled" }}
- {name: tls, mountPath: /etc/dgemma/tls, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
