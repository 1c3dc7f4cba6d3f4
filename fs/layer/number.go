package layer

// At returns the object with a number, from 0 to below [Index.Len]: its place
// among the sorted keys. Who keeps something for each object needs no keys.
func (x *Index) At(number int) ObjectView { return ObjectView{x, number} }

// Number is the object's number: see [Index.At].
func (o ObjectView) Number() int { return o.i }
