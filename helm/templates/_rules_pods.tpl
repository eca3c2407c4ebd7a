{{/* Rules about what runs, how often and where. */}}

{{- define "dgemma.rule.image" -}}
{{- if not .Values.image.repository -}}
image.repository: not set. Build the image and push it to a registry that the cluster reaches, then name it:
    docker buildx build --platform linux/amd64,linux/arm64 --push --tag REGISTRY/dgemma:{{ .Chart.AppVersion }} .
    helm … --set image.repository=REGISTRY/dgemma
  (for cpu-demo: docker build --target cpu --tag REGISTRY/dgemma:{{ .Chart.AppVersion }}-cpu . && docker push …)
{{- end -}}
{{- end }}

{{- define "dgemma.rule.latest" -}}
{{- range $value, $image := dict "image.tag" .Values.image.tag "baseline.vllm.image" .Values.baseline.vllm.image "baseline.trtllm.image" .Values.baseline.trtllm.image -}}
{{- if eq (splitList ":" $image | last) "latest" -}}
{{ $value }}: latest is another image tomorrow; name a version{{ "\n" }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.platform" -}}
{{- if not .Values.platform.name -}}
platform: not set. Name a file of what the nodes are: -f helm/platforms/h100.yaml (h100-mig, dgx-spark, dgx-station, cpu-demo), or one of your own for another GPU
{{- end -}}
{{- end }}

{{- define "dgemma.rule.gpu" -}}
{{- if ne (empty .Values.platform.gpuResource) (eq 0 (int .Values.platform.gpuCount)) -}}
platform.gpuResource, platform.gpuCount: set both, as nvidia.com/gpu and 1, or neither, for CPUs
{{- end -}}
{{- end }}

{{- define "dgemma.rule.slots" -}}
{{- $most := int .Values.platform.limits.slots -}}
{{- if and $most (gt (int .Values.serving.slots) $most) -}}
serving.slots: {{ int .Values.serving.slots }} are more than engines of {{ .Values.platform.name }} have rows for; at most {{ $most }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.context" -}}
{{- $most := int .Values.platform.limits.context -}}
{{- if and $most (gt (int .Values.serving.maxModelLen) $most) -}}
serving.maxModelLen: {{ int .Values.serving.maxModelLen }} tokens are more than engines of {{ .Values.platform.name }} take; at most {{ $most }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.stuck" -}}
{{- if le (float64 .Values.serving.stuckSeconds) (float64 .Values.serving.quietSeconds) -}}
serving.stuckSeconds: {{ .Values.serving.stuckSeconds }} is not above quietSeconds, {{ .Values.serving.quietSeconds }}: nothing would be given the time to recover
{{- end -}}
{{- end }}

{{- define "dgemma.rule.replicas" -}}
{{- if and .Values.autoscaling.enabled (not (kindIs "invalid" .Values.replicas)) -}}
replicas: {{ int .Values.replicas }} and autoscaling.enabled both say how many pods there are; leave replicas out (--set replicas=null), and set autoscaling.minReplicas
{{- end -}}
{{- end }}

{{- define "dgemma.rule.autoscaling" -}}
{{- if and .Values.autoscaling.enabled (eq .Values.rollout "recreate") -}}
autoscaling.enabled: rollout recreate is for a node whose GPU is taken, where no further pod fits; set rollout to in-place or surge if there are GPUs for {{ .Values.autoscaling.maxReplicas }} pods
{{- end -}}
{{- end }}

{{- define "dgemma.rule.autoscalingRange" -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
autoscaling.minReplicas: {{ .Values.autoscaling.minReplicas }} is above maxReplicas, {{ .Values.autoscaling.maxReplicas }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.memory" -}}
{{- with .Values.platform.unifiedMemory -}}
{{- $limit := trimSuffix "Gi" $.Values.resources.limits.memory | int -}}
{{- if and .totalGiB (gt $limit (sub .totalGiB .headRoomGiB | int)) -}}
resources.limits.memory: {{ $.Values.resources.limits.memory }} leaves less than {{ .headRoomGiB }} of {{ .totalGiB }} GiB for the system, and GPU and system share them: where they run out, the machine stands still; at most {{ sub .totalGiB .headRoomGiB }}Gi
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.baselinePlatform" -}}
{{- with .Values.baseline -}}
{{- $engine := get . .engine -}}
{{- if and .enabled (not (has $.Values.platform.name $engine.platforms)) -}}
baseline.engine: {{ .engine }} ({{ $engine.image }}) is known to run {{ .model }} on {{ join ", " $engine.platforms }}, not on {{ $.Values.platform.name }}; choose another engine, or set baseline.{{ .engine }}.image and .platforms if you know better
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.extraEnv" -}}
{{- $ours := list -}}
{{- range include "dgemma.serverEnv" . | fromYamlArray -}}{{- $ours = append $ours .name -}}{{- end -}}
{{- if .Values.model.hfToken.secret -}}{{- $ours = append $ours "HF_TOKEN" -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $ours -}}
extraEnv: {{ .name }} is set by the chart already; change the value that it comes from: see templates/_server.tpl and _pod.tpl
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.extraVolumes" -}}
{{- range .Values.extraVolumes -}}
{{- if has .name (list "store" "tmp" "shm" "models" "tenants" "ledger" "tls") -}}
extraVolumes: {{ .name }} is a volume of the chart's own; choose another name
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.podLabels" -}}
{{- range $label, $_ := .Values.podLabels -}}
{{- if hasKey (include "dgemma.selector" (list $ "") | fromYaml) $label -}}
podLabels: {{ $label }} is what the chart finds its pods by; leave it out
{{- end -}}
{{- end -}}
{{- end }}
