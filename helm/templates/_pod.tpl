{{/* What is alike in every pod of the release. (list CONTEXT USES_GPU) */}}
{{- define "dgemma.podCommon" -}}
{{- $ := index . 0 -}}
{{- $gpu := and (index . 1) $.Values.platform.gpuCount -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with $.Values.security }}
  {{- if not (kindIs "invalid" .runAsUser) }}
  runAsUser: {{ .runAsUser | int64 }}
  {{- end }}
  {{- if not (kindIs "invalid" .runAsGroup) }}
  runAsGroup: {{ .runAsGroup | int64 }}
  {{- end }}
  {{- if not (kindIs "invalid" .fsGroup) }}
  fsGroup: {{ .fsGroup | int64 }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with $.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- if $gpu }}
{{- with $.Values.scheduling.runtimeClass }}
runtimeClassName: {{ . }}
{{- end }}
{{- if or $.Values.scheduling.priorityClass.name $.Values.scheduling.priorityClass.create }}
priorityClassName: {{ include "dgemma.priorityClass" $ }}
{{- end }}
{{- end }}
{{- with $.Values.scheduling.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.scheduling.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or $.Values.platform.arch (and $gpu $.Values.platform.products) }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            {{- with $.Values.platform.arch }}
            - {key: kubernetes.io/arch, operator: In, values: [{{ . }}]}
            {{- end }}
            {{- if and $gpu $.Values.platform.products }}
            - key: nvidia.com/gpu.product
              operator: In
              values:
                {{- toYaml $.Values.platform.products | nindent 16 }}
            {{- end }}
{{- end }}
{{- end }}

{{- define "dgemma.priorityClass" -}}
{{ default (printf "%s-%s" .Release.Namespace (include "dgemma.fullname" .)) .Values.scheduling.priorityClass.name }}
{{- end }}

{{- define "dgemma.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* (list RESOURCES PLATFORM): with the GPU, requested and limited alike. */}}
{{- define "dgemma.resources" -}}
{{- $resources := deepCopy (index . 0) -}}
{{- $platform := index . 1 -}}
{{- if $platform.gpuCount -}}
{{- $gpu := dict $platform.gpuResource (int $platform.gpuCount) -}}
{{- $_ := set $resources "requests" (merge (dict) $gpu (default dict $resources.requests)) -}}
{{- $_ := set $resources "limits" (merge (dict) $gpu (default dict $resources.limits)) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{/* Environment of whatever works on the model store. */}}
{{- define "dgemma.storeEnv" -}}
- {name: NIM_CACHE_PATH, value: /opt/nim/.cache}
- {name: NIM_LOG_LEVEL, value: {{ .Values.serving.logLevel }}}
- {name: NIM_JSONL_LOGGING, value: {{ ternary "1" "0" .Values.serving.jsonLog | quote }}}
- {name: NIM_MAX_MODEL_LEN, value: {{ .Values.serving.maxModelLen | int64 | quote }}}
- {name: DGEMMA_SLOTS, value: {{ .Values.serving.slots | int64 | quote }}}
{{- if or .Values.model.airGapped (not (hasPrefix "hf://" .Values.model.source)) }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- if .Values.store.readOnly }}
- {name: XDG_CACHE_HOME, value: /tmp/.cache}
{{- end }}
{{- end }}

{{/* Mounts of whatever works on the model store; (list CONTEXT READ_ONLY). */}}
{{- define "dgemma.storeMounts" -}}
{{- $ := index . 0 -}}
- {name: store, mountPath: /opt/nim/.cache{{ if index . 1 }}, readOnly: true{{ end }}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if $.Values.model.volume }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "dgemma.storeVolumes" -}}
- name: store
  {{- if eq .Values.store.mode "emptyDir" }}
  emptyDir:
    sizeLimit: {{ .Values.store.size }}
  {{- else if eq .Values.store.mode "hostPath" }}
  hostPath:
    path: {{ .Values.store.path }}
    type: Directory
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "dgemma.claimName" . }}
    {{- if .Values.store.readOnly }}
    readOnly: true
    {{- end }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 4Gi
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: 1Gi
{{- with .Values.model.volume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The container that makes sure of an engine for the GPU it has; a second run does nothing. */}}
{{- define "dgemma.engineContainer" -}}
- name: engine
  image: {{ include "dgemma.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - dgemma-build
    - ensure
    - --store=/opt/nim/.cache
    - --checkpoint={{ .Values.model.source }}
    {{- with .Values.model.revision }}
    - --revision={{ . }}
    {{- end }}
    - --precision={{ .Values.model.precision }}
    - --target=auto
  env:
    {{- include "dgemma.storeEnv" . | nindent 4 }}
    {{- with .Values.model.hfToken }}
    {{- if .secret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
    {{- end }}
    {{- end }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "dgemma.containerSecurity" . | nindent 4 }}
  resources:
    {{- include "dgemma.resources" (list .Values.resources .Values.platform) | nindent 4 }}
  volumeMounts:
    {{- include "dgemma.storeMounts" (list . false) | nindent 4 }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
