{{/* Rules about the model, its engine and their store. */}}

{{- define "dgemma.rule.precision" -}}
{{- if and .Values.platform.name (not (has .Values.model.precision .Values.platform.precisions)) -}}
model.precision: {{ default "nothing" .Values.model.precision }} is no precision of {{ .Values.platform.name }}; choose one of {{ join ", " .Values.platform.precisions }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.revision" -}}
{{- if and .Values.model.revision (not (hasPrefix "hf://" .Values.model.source)) -}}
model.revision: a commit of the hub, and model.source is {{ default "empty" .Values.model.source }}; leave it out, or set model.source to hf://ORG/NAME
{{- end -}}
{{- end }}

{{- define "dgemma.rule.airGapped" -}}
{{- if and .Values.model.airGapped (hasPrefix "hf://" .Values.model.source) (not .Values.model.revision) (ne .Values.engine.build "none") -}}
model.airGapped: {{ .Values.model.source }} is on the hub; set model.source to a directory of model.volume (/models/…), or model.revision to the one that is in the store, or engine.build=none
{{- end -}}
{{- end }}

{{- define "dgemma.rule.checkpoint" -}}
{{- if and (hasPrefix "/models" .Values.model.source) (not .Values.model.volume) -}}
model.source: /models is where model.volume is mounted, and none is set; give one, such as model.volume.persistentVolumeClaim.claimName=NAME
{{- end -}}
{{- end }}

{{- define "dgemma.rule.filled" -}}
{{- if and (not .Values.model.source) (ne .Values.engine.build "none") -}}
model.source: empty means that the store is filled; set engine.build=none too, or name a checkpoint to build from
{{- end -}}
{{- end }}

{{- define "dgemma.rule.job" -}}
{{- if and (eq .Values.engine.build "job") .Values.platform.gpuCount (ne .Values.rollout "surge") (not .Values.suspended) -}}
engine.build: the job needs a GPU beside those of the service's pods, and rollout {{ .Values.rollout }} says that none is free: they would wait for each other. Use engine.build init; or set suspended=true, wait for the job, and then suspended=false; or rollout surge, if a GPU is free
{{- end -}}
{{- end }}

{{- define "dgemma.rule.jobStore" -}}
{{- if and (eq .Values.engine.build "job") (eq .Values.store.mode "emptyDir") -}}
engine.build: what a job leaves in an emptyDir goes with its pod; use engine.build init, or a store that outlives a pod
{{- end -}}
{{- end }}

{{- define "dgemma.rule.readOnlyStore" -}}
{{- if and .Values.store.readOnly (ne .Values.engine.build "none") -}}
store.readOnly: nothing can be built into it; set engine.build=none, and fill the store beforehand
{{- end -}}
{{- end }}

{{- define "dgemma.rule.spread" -}}
{{- $many := or (gt (int (include "dgemma.mostReplicas" .)) 1) (eq .Values.rollout "surge") -}}
{{- if and $many (eq .Values.store.mode "pvc") (eq .Values.store.accessMode "ReadWriteOnce") -}}
store.accessMode: ReadWriteOnce holds all pods on one node, and {{ if eq .Values.rollout "surge" }}a surge{{ else }}{{ include "dgemma.mostReplicas" . }} replicas{{ end }} may need another, and would wait for the volume for ever; use ReadWriteMany, or store.mode hostPath (a store on each node) or emptyDir (one in each pod)
{{- end -}}
{{- end }}

{{- define "dgemma.rule.claim" -}}
{{- if ne (eq .Values.store.mode "existingClaim") (not (empty .Values.store.claim)) -}}
store.claim: goes with store.mode existingClaim, which needs the name of a claim in namespace {{ .Release.Namespace }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.hostPath" -}}
{{- if ne (eq .Values.store.mode "hostPath") (not (empty .Values.store.path)) -}}
store.path: goes with store.mode hostPath, which needs an absolute path of each node, writable for user {{ .Values.security.runAsUser }}
{{- end -}}
{{- end }}
